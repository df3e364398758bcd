"""`imagen-pl fit-captioner` and `imagen-pl caption`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from imagen_pl.cli.main import main
from imagen_pl.data import progress
from imagen_pl.inference.captioning import load_captioner
from imagen_pl.models.noisy_views import NoisyViews
from imagen_pl.storage.model_paths import CAPTIONER_WEIGHTS as WEIGHTS
from tests.helpers.commands import one_line_error
from tests.helpers.image_files import noise
from tests.helpers.runs import Tiny, tiny_config
from tests.helpers.training import assert_same

OPTIMIZER = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003}}
CAPTIONER: dict[str, Any] = {
    "class_path": "imagen_pl.models.captioner.model.Captioner",
    "init_args": {
        "features": {"class_path": "tests.helpers.captioners.Pixels"},
        "vocab_size": 300,
        "max_tokens": 8,
        "dim": 16,
        "layers": 1,
        "heads": 2,
    },
}


def captioner_config(photos: Path, **model: Any) -> dict[str, Any]:
    """Two epochs of 48 images, each with its validation."""
    return {
        "model": {"captioner": CAPTIONER, "optimizer": OPTIMIZER, "kimg": 0.096, **model},
        "data": {
            "source": {"class_path": "FolderSource", "init_args": {"path": str(photos)}},
            "resolution": 8,
            "batch_size": 8,
            "num_workers": 0,
            "epoch_kimg": 0.048,
            "val_fraction": 0.25,
        },
        "trainer": {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1},
    }


def with_captioning(photos: Path, bert: Path, features: dict[str, Any]) -> dict[str, Any]:
    """The tiny run, with a captioner in it."""
    config = tiny_config(photos, bert)
    captioner = {**CAPTIONER, "init_args": {**CAPTIONER["init_args"], "features": features}}
    config["model"]["losses"] = [
        {
            "class_path": "imagen_pl.losses.captioning.Captioning",
            "init_args": {"captioner": captioner, "optimizer": OPTIMIZER},
        }
    ]
    config["trainer"]["max_steps"] = 60  # of three optimizers
    return config


@pytest.fixture
def words(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of `fit-captioner`, in an empty working folder with a picture in it."""
    monkeypatch.chdir(tmp_path)
    Path("reader.yaml").write_text(yaml.safe_dump(captioner_config(photos)))
    noise(20, 12).save("picture.png")
    return ["--config", "reader.yaml"]


def numbers_of(run: Path) -> list[dict[str, str]]:
    lines = (run / "metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


# ---------------------------------------------------------------------- fit-captioner


def test_captioner_is_trained_and_saved(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)  # a run this short would show no bar
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    assert main(["fit-captioner", *words]) == 0
    output, run = capsys.readouterr(), Path("runs/reader")
    assert "Trained on 96 images, val/caption_ce" in output.out
    assert "imagen-pl caption runs/reader picture.png" in output.out
    assert "96/96" in output.err
    assert output.err.count("val/caption_ce_shuffled") == 2
    rows = numbers_of(run)
    assert [row["images_seen"] for row in rows if row["train/caption_ce"]] == [
        str(n) for n in range(0, 96, 8)
    ]
    scored = [float(row["val/caption_ce"]) for row in rows if row["val/caption_ce"]]
    assert scored[1] < scored[0]  # the loss falls
    kept = json.loads((run / "config.json").read_text())
    assert kept["val/caption_ce"] == pytest.approx(min(scored))
    assert kept["captioner"]["init_args"]["dim"] == 16
    assert kept["resolution"] == 8
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["images_seen"] == 96
    held = {n.removeprefix("captioner."): t for n, t in checkpoint["state_dict"].items()}
    own = load_captioner(run, "cpu").captioner.state_dict()
    assert_same({name: held[name] for name in own}, dict(own))


def test_only_training_images_are_augmented(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[int] = []
    forward = NoisyViews.forward

    def counted(self: NoisyViews, images: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        changed.append(len(images))
        return forward(self, images, seed)

    monkeypatch.setattr(NoisyViews, "forward", counted)
    name = "imagen_pl.models.noisy_views.NoisyViews"
    assert main(["fit-captioner", *words, "--model.augment", name, "--model.augment.noise", "0.2"]) == 0
    assert sum(changed) == 96  # the images of the two validations are not augmented
    augment = yaml.safe_load(Path("runs/reader/config.yaml").read_text())["model"]["augment"]
    assert augment["init_args"]["noise"] == 0.2


def test_resumed_captioner_equals_uninterrupted_to_the_bit(words: list[str], photos: Path) -> None:
    assert main(["fit-captioner", *words, "--name", "whole"]) == 0
    assert main(["fit-captioner", *words, "--name", "parts", "--model.kimg", "0.048"]) == 0
    assert main(["fit-captioner", *words, "--name", "parts", "--ckpt_path", "last"]) == 0
    whole, parts = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert_same(parts["state_dict"], whole["state_dict"])
    assert_same(parts["optimizer_states"], whole["optimizer_states"])


def test_earlier_run_is_not_overwritten(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-captioner", *words]) == 0
    assert main(["fit-captioner", *words]) == 2
    assert "runs/reader already contains a run: add --ckpt_path last to resume it" in capsys.readouterr().err
    assert main(["fit-captioner", *words, "--existing", "move"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


class Interrupt(Callback):
    """Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if pl_module.images_seen == 64:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_the_captioner(
    words: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = captioner_config(photos)
    config["trainer"]["callbacks"] = [{"class_path": "tests.cli.test_caption.Interrupt"}]
    Path("reader.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit-captioner", *words]) == 130
    output = capsys.readouterr().out
    assert "Stopped at 64 images, val/caption_ce" in output
    assert "Resume: imagen-pl fit-captioner --config runs/reader/config.yaml --ckpt_path last" in output
    assert json.loads(Path("runs/reader/config.json").read_text())["images_seen"] == 48  # the best so far
    assert torch.load("runs/reader/checkpoints/last.ckpt", weights_only=True)["images_seen"] == 64
    resume = output[output.index("Resume: imagen-pl ") :].splitlines()[0].split()[2:]
    assert main(resume) == 0
    assert torch.load("runs/reader/checkpoints/last.ckpt", weights_only=True)["images_seen"] == 96


def test_without_validation_the_last_captioner_is_saved(words: list[str]) -> None:
    assert main(["fit-captioner", *words, "--data.val_fraction", "0"]) == 0
    assert json.loads(Path("runs/reader/config.json").read_text())["images_seen"] == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model.kimg", "0"], "model.kimg 0.0 must be more than 0"),
        (["--model.captioner.init_args.dim", "7"], "captioner.dim 7 must be divisible by its 2 heads"),
        (["--ckpt_path", "last"], "contains no checkpoint to resume from"),
    ],
)
def test_bad_input_of_fit_captioner_gives_one_line_error(
    change: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = one_line_error(["fit-captioner", *words, *change], capsys)
    assert message in error


def test_discriminator_features_are_refused_in_standalone_training(
    words: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = captioner_config(photos)
    seen = {
        "class_path": "imagen_pl.models.captioner.image_features.DiscriminatorFeatures",
        "init_args": {"channels": 8},
    }
    config["model"]["captioner"] = {**CAPTIONER, "init_args": {**CAPTIONER["init_args"], "features": seen}}
    Path("reader.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit-captioner", *words]) == 2
    assert "a captioner trained on its own has no discriminator" in capsys.readouterr().err


# ---------------------------------------------------------------------- caption


@pytest.fixture(scope="session")
def reader_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner's folder."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.yaml").write_text(yaml.safe_dump(captioner_config(photos)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit-captioner", "--config", "reader.yaml"]) == 0
    return folder / "runs/reader"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_one_line_per_image(reader_once: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    pictures = sorted(map(str, photos.glob("*.png")))[:2]
    assert main(["caption", str(reader_once), *pictures]) == 0
    output = lines(capsys)
    captioner = load_captioner(reader_once, "cpu")
    assert output == [f"{name}: {captioner.caption(Path(name))}" for name in pictures]
    assert main(["caption", str(reader_once), *pictures, "--num_beams", "3", "--json"]) == 0
    beams = [json.loads(line) for line in lines(capsys)]
    assert beams == [{"image": n, "caption": captioner.caption(Path(n), num_beams=3)} for n in pictures]


def test_sampled_captions_depend_on_image_and_seed(
    reader_once: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    a, b = sorted(map(str, photos.glob("*.png")))[:2]
    assert main(["caption", str(reader_once), a, b, "--num_captions", "3", "--seed", "7", "--json"]) == 0
    several = [json.loads(line) for line in lines(capsys)]
    assert [row["seed"] for row in several] == [7, 8, 9, 7, 8, 9]
    assert len({row["caption"] for row in several}) > 1
    assert main(["caption", str(reader_once), b, "--num_captions", "1", "--seed", "8", "--json"]) == 0
    assert json.loads(lines(capsys)[0]) == several[4]


@pytest.mark.parametrize("features", ["pixels", "discriminator"])
def test_captioner_of_a_run_captions(
    features: str, tiny: Tiny, photos: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name: dict[str, dict[str, Any]] = {
        "pixels": {"class_path": "tests.helpers.captioners.Pixels"},
        "discriminator": {
            "class_path": "imagen_pl.models.captioner.image_features.DiscriminatorFeatures",
            "init_args": {"channels": 8, "resolution": 4},
        },
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(with_captioning(photos, bert, by_name[features])))
    assert main(["fit", *tiny.words]) == 0
    capsys.readouterr()
    picture = str(next(iter(photos.glob("*.png"))))
    assert main(["caption", str(tiny.run), picture]) == 0
    (first,) = lines(capsys)
    assert first.startswith(f"{picture}: ")
    best = tiny.run / "checkpoints/best.ckpt"  # the one that load() opens too
    assert main(["caption", str(best), picture]) == 0
    assert lines(capsys) == [first]
    captioner = load_captioner(tiny.run, "cpu")
    assert captioner.resolution == 8
    held = torch.load(best, weights_only=True)["state_dict"]
    own = captioner.captioner.state_dict()
    assert_same({n: held[f"losses.0.captioner.{n}"] for n in own}, dict(own))
    if features == "discriminator":
        assert captioner.discriminator is not None
        weight = captioner.discriminator.get_parameter("to_final.weight")
        assert torch.equal(weight, held["discriminator.to_final.weight"])


def test_checkpoint_of_a_captioner_run_captions(reader_once: Path) -> None:
    last = load_captioner(reader_once / "checkpoints/last.ckpt", "cpu")
    assert last.resolution == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "nowhere.png"], "nowhere.png: there is no such file"),
        (["MODEL", "broken.png"], "broken.png cannot be read as a picture"),
        (["nowhere", "picture.png"], "there is no run, checkpoint or release nowhere"),
        (
            ["empty", "picture.png"],
            "model empty: neither a run with checkpoints/*.ckpt nor a release",
        ),
        (["MODEL", "picture.png", "--num_beams", "0"], "--num_beams 0 must be 1 or more"),
        (["MODEL", "picture.png", "--num_captions", "0"], "--num_captions 0 must be 1 or more"),
        (["MODEL", "picture.png", "--num_captions", "2", "--num_beams", "2"], "give one of them"),
    ],
)
def test_bad_input_of_caption_gives_one_line_error(
    arguments: list[str],
    message: str,
    reader_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    noise(20, 12).save("picture.png")
    Path("broken.png").write_bytes(b"no picture")
    Path("empty").mkdir()
    arguments = [str(reader_once) if word == "MODEL" else word for word in arguments]
    error = one_line_error(["caption", *arguments], capsys)
    assert message in error


def test_model_without_a_captioner_gives_one_line_error(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(20, 12).save("picture.png")
    error = one_line_error(["caption", str(trained.run), "picture.png"], capsys)
    assert "was trained without a captioner" in error
    assert "configs/teacher/captioning.yaml" in error
    assert "imagen-pl fit-captioner --config configs/experiment/captioner.yaml" in error


def test_damaged_captioner_gives_one_line_error(
    reader_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(20, 12).save(tmp_path / "picture.png")
    for name, content, message in (
        ("config.json", b"{", "config.json cannot be read (JSONDecodeError"),
        ("config.json", b'{"resolution": 8}', "config.json cannot be read (KeyError"),
        (
            "config.json",
            b'{"resolution": 8, "captioner": {"class_path": "No"}}',
            "its captioner cannot be built",
        ),
        (WEIGHTS, b"no weights", "cannot be read: it is damaged"),
    ):
        folder = tmp_path / f"{name}{len(content)}"
        folder.mkdir()
        for kept in ("config.json", WEIGHTS):
            (folder / kept).write_bytes((reader_once / kept).read_bytes())
        (folder / name).write_bytes(content)
        error = one_line_error(["caption", str(folder), str(tmp_path / "picture.png")], capsys)
        assert message in error
