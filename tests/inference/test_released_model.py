"""Models that come with the package, by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.captioning import load_captioner
from imagen_pl.models.captioner.model import Captioner
from imagen_pl.models.captioner.weights import save_weights
from imagen_pl.storage import model_paths
from tests.cli.test_caption import CAPTIONER
from tests.helpers.captioners import Pixels
from tests.helpers.image_files import noise
from tests.helpers.runs import REPOSITORY, Tiny


@pytest.fixture
def hearts(trained: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release with a captioner, as if it came with the package."""
    folder = tmp_path / "released/hearts"
    load(trained.run, "cpu").save(folder, torch.float16)
    captioner = Captioner(Pixels(), vocab_size=300, max_tokens=8, dim=16, layers=1, heads=2)
    captioner.prepare(lambda: ["a red heart"])
    save_weights(captioner, folder / "captioner", torch.float16)
    described = {"resolution": 8, "captioner": CAPTIONER}
    (folder / "captioner/config.json").write_text(json.dumps(described))
    monkeypatch.setattr(model_paths, "RELEASED", tmp_path / "released")
    return folder


def test_released_model_is_found_by_name_and_draws(hearts: Path) -> None:
    assert main(["sample", "hearts", "a red heart"]) == 0
    assert load("hearts", "cpu").sample("a red heart")[0].tobytes() == (
        load(hearts, "cpu").sample("a red heart")[0].tobytes()
    )


def test_released_model_captions_if_it_has_a_captioner(
    hearts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(8).save("picture.png")
    assert main(["caption", "hearts", "picture.png"]) == 0
    assert capsys.readouterr().out.startswith("picture.png: ")
    weights = list(load_captioner("hearts", "cpu").captioner.parameters())
    assert {p.dtype for p in weights} == {torch.float32}
    (hearts / "captioner/captioner.safetensors").unlink()
    assert main(["caption", "hearts", "picture.png"]) == 2
    assert "is a release without a captioner" in capsys.readouterr().err


def test_local_folder_of_its_name_takes_precedence_only_with_a_model(
    hearts: Path, trained: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model_paths._warn_once.cache_clear()
    Path("hearts").mkdir()
    assert model_paths.model_file("hearts") == hearts / "model.safetensors"
    assert "the model that ships with this package is used; ./hearts here contains no model" in caplog.text

    Path("hearts").rmdir()
    trained.run.rename("hearts")
    assert model_paths.model_file("hearts") == Path("hearts/checkpoints/best.ckpt")
    assert f"the model in ./hearts is used; the one that ships with this package is {hearts}" in caplog.text
    assert caplog.text.count("ships") == 2
    assert model_paths.model_file("./hearts") == Path("hearts/checkpoints/best.ckpt")
    assert caplog.text.count("ships") == 2  # named by its path, there is no warning


def test_similar_names_are_suggested(hearts: Path, trained: Tiny) -> None:
    def message(name: str) -> str:
        with pytest.raises(UserError) as error:
            load(name)
        return str(error.value)

    assert message("harts") == "there is no run, checkpoint or release harts; did you mean hearts?"
    assert message("runs/tinny") == (
        "there is no run, checkpoint or release runs/tinny; did you mean runs/tiny?"
    )
    assert message("zzz").endswith("zzz; hearts ships with this package")
    assert message("runs/zzz").endswith("release runs/zzz")


# ---------------------------------------------------------------------- the shipped model

EMOJI = model_paths.RELEASED / "emoji"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def test_released_model_draws_offline(offline: None) -> None:
    assert main(["sample", "emoji", "a cupcake, fluent style", "--out", "cupcake.png"]) == 0
    with Image.open("cupcake.png") as picture:
        assert min(picture.size) >= 128
    model = load("emoji", "cpu")
    assert model.resolution == 64
    red, blue = (
        np.array(model.sample(f"{colour} heart, noto style")[0]).mean((0, 1)) for colour in ("red", "blue")
    )
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_released_captioner_captions_offline(offline: None, capsys: pytest.CaptureFixture[str]) -> None:
    load("emoji", "cpu").sample("red heart, noto style")[0].save("heart.png")
    capsys.readouterr()
    assert main(["caption", "emoji", "heart.png"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("heart.png: ")
    assert said.rstrip().endswith(" style")


def test_release_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in EMOJI.rglob("*") if file.is_file()) < 50e6
    card = (EMOJI / "README.md").read_text()
    for title in ("Data", "Recipe", "Scores", "How it was made", "The captioner", "Where it fails", "Limits"):
        assert f"\n## {title}\n" in card
    for split in ("train", "composition", "test"):
        assert f"real images of the split {split}" in card
    for score in (
        *(
            "Fréchet distance",
            "between two halves of the real images",
            "kernel distance",
            "Gaussian discrepancy",
        ),
        *("precision", "recall", "density", "coverage", "top-1 retrieval", "top-5 retrieval"),
        *("mean reciprocal rank", "diversity within a prompt", "distance to the nearest training image"),
    ):
        assert f"\n| {score}" in card or f"the same {score}" in card, score
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card):
        assert (EMOJI / target).is_file()
    for file in (EMOJI / "README.md", EMOJI / "config.json", EMOJI / "captioner/config.json"):
        assert not re.search(r"(^|[\s\"'(])/(home|root|tmp|work|mnt|Users)/", file.read_text())


@pytest.mark.slow
def test_the_wheel_of_the_source_archive_draws(tmp_path: Path) -> None:
    """From the wheel that pip would install, without access to this repository."""
    source = tmp_path / "source"  # a build in place would include files of older builds
    shutil.copytree(REPOSITORY / "imagen_pl", source / "imagen_pl")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    archive = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", archive], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (packed,) = tmp_path.glob("imagen_pl-*.tar.gz")
    words = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(packed)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (wheel,) = tmp_path.glob("imagen_pl-*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    code = (
        "import imagen_pl, sys; from imagen_pl.cli.main import main; print(imagen_pl.__file__); "
        "sys.exit(main(['sample', 'emoji', 'red heart, noto style', '--out', 'heart.png']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert (tmp_path / "heart.png").is_file()
