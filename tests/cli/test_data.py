"""`imagen-pl data shards` and `imagen-pl data captions`, from the command to a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import imagen_pl.cli.caption_folder as module
from imagen_pl.cli.main import main
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.inference.captioning import CaptioningPipeline, load_captioner
from tests.cli.test_caption import captioner_config
from tests.helpers.image_files import noise, write_metadata
from tests.helpers.runs import Tiny

COMMAND = Path(sys.executable).parent / "imagen-pl"

# ---------------------------------------------------------------------- shards


def test_model_trains_on_the_written_captions(
    tiny: Tiny, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "shards", str(photos), "--out", "shards", "--size_images", "4"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    sizes = sum(file.stat().st_size for file in Path("shards").iterdir())
    assert output.out.splitlines() == [
        f"train             12 images, {sizes / 1e6:.1f} MB: shards/train-{{000000..000002}}.tar",
        "splits      no validation: data.val_fraction of the train shards will be held out",
        "Train: imagen-pl fit --config configs/experiment/folder64.yaml "
        "--config configs/data/webdataset.yaml --data.source.path shards",
    ]
    assert main(["data", "inspect", "shards"]) == 0
    assert "images     12: train 12" in capsys.readouterr().out
    words = ["--data.source", "WebDatasetSource", "--data.source.path", "shards"]
    assert main(["fit", *tiny.words, *words, "--trainer.max_steps", "24"]) == 0
    assert torch.load(tiny.run / "checkpoints/last.ckpt", weights_only=True)["images_seen"] == 48


def test_installed_command_writes_captions(photos: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), "data", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    done = run("shards", str(photos), "--out", "shards", "--shrink", "8")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path / "shards")) == ["train-000000.tar", "train-000001.tar"]
    again = run("shards", str(photos), "--out", "shards")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "error: --out shards is not empty: name a new folder\n"
    done = run("captions", str(photos), "--captioner", "nowhere", "--overwrite")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: there is no run, checkpoint or release nowhere; emoji, icons and upsampler ship with this "
        "package\n"
    )


# ---------------------------------------------------------------------- captions


@pytest.fixture(scope="module")
def reader(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner's folder; it is trained enough to give every picture a caption."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.yaml").write_text(yaml.safe_dump(captioner_config(photos, kimg=1.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit-captioner", "--config", "reader.yaml"]) == 0
    return folder / "runs/reader"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures without captions, in two folders, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        file = Path("mine") / ("train" if i < 4 else "val") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(20, 12, seed=i).save(file)
    return Path("mine")


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    splits = FolderSource(str(folder)).load(SkippedImages())
    return {row.name: row.captions for rows in splits.values() for row in rows}


def caption(folder: Path, reader: Path, *words: str) -> int:
    return main(["data", "captions", str(folder), "--captioner", str(reader), "--device", "cpu", *words])


def test_every_image_gets_a_caption_file(
    reader: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert caption(pictures, reader) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines() == [
        "mine: 5 captions written; 0 images already had one",
        "Look at them: imagen-pl data inspect mine",
    ]
    describer = load_captioner(reader, "cpu")
    names = [f"train/{i}.png" for i in range(4)] + ["val/4.png"]
    found = captions_of(pictures)
    assert found == {name: (describer.caption(pictures / name),) for name in names}
    assert all(words[0] for words in found.values())
    assert sorted(p.name for p in pictures.rglob("*")) == sorted(
        ["train", "val", *(f"{i}.{ending}" for i in range(5) for ending in ("png", "txt"))]
    )


def test_num_beams_is_passed_to_the_captioner(reader: Path, pictures: Path) -> None:
    assert caption(pictures, reader, "--num_beams", "3") == 0
    describer = load_captioner(reader, "cpu")
    assert captions_of(pictures)["train/0.png"] == (describer.caption(pictures / "train/0.png", 3),)


def test_existing_captions_are_kept(reader: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "train/0.txt").write_text("by hand\n")
    (pictures / "train/1.txt").write_text(" \n")  # counts as none
    write_metadata(pictures, [{"file_name": "train/2.png", "text": "by metadata"}])
    capsys.readouterr()
    assert caption(pictures, reader) == 0
    assert "mine: 3 captions written; 2 images already had one" in capsys.readouterr().out
    assert captions_of(pictures)["train/0.png"] == ("by hand",)
    assert captions_of(pictures)["train/1.png"][0]
    assert not (pictures / "train/2.txt").exists()
    assert caption(pictures, Path("nowhere")) == 0  # nothing is left to do, and no captioner is loaded
    assert "mine: 0 captions written; 5 images already had one" in capsys.readouterr().out
    assert caption(pictures, reader, "--overwrite") == 0
    assert "mine: 4 captions written; 1 image already had one" in capsys.readouterr().out
    assert captions_of(pictures)["train/0.png"] != ("by hand",)
    assert captions_of(pictures)["train/2.png"] == ("by metadata",)


def test_images_with_the_same_stem_share_a_caption(reader: Path, pictures: Path) -> None:
    noise(20, 12).save(pictures / "train/0.jpg")
    assert caption(pictures, reader) == 0
    found = captions_of(pictures)
    assert found["train/0.jpg"] == found["train/0.png"]


def test_interrupted_captioning_continues(
    reader: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_BATCH", 1)
    seen: list[torch.Tensor] = []
    original = CaptioningPipeline.caption_batch

    def ctrl_c(self: CaptioningPipeline, images: torch.Tensor, num_beams: int = 1) -> list[str]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(images)
        return original(self, images, num_beams)

    monkeypatch.setattr(CaptioningPipeline, "caption_batch", ctrl_c)
    capsys.readouterr()
    assert caption(pictures, reader) == 130
    output = capsys.readouterr().out
    assert output == "Stopped: 2 of 5 captions written; run the same command to continue\n"
    first = {file: file.stat().st_mtime_ns for file in pictures.rglob("*.txt")}
    assert len(first) == 2
    monkeypatch.setattr(CaptioningPipeline, "caption_batch", original)
    assert caption(pictures, reader) == 0
    assert "mine: 3 captions written; 2 images already had one" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in first} == first
    assert len(captions_of(pictures)) == 5


def test_unreadable_images_are_named_once_and_counted(
    reader: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "train/1.png").write_bytes(b"no picture")
    (pictures / "val/4.png").write_bytes(b"")
    capsys.readouterr()
    assert caption(pictures, reader) == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        f"{name} gets no caption: UnidentifiedImageError" for name in ("train/1.png", "val/4.png")
    ]
    assert "mine: 3 captions written; 0 images already had one" in output.out
    assert "2 images without a caption: 2 unreadable (train/1.png, val/4.png)" in output.out
    assert not (pictures / "train/1.txt").exists()


def test_empty_captions_are_counted_and_not_written(
    reader: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        CaptioningPipeline, "caption_batch", lambda self, images, num_beams: [""] * len(images)
    )
    capsys.readouterr()
    assert caption(pictures, reader) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: mine: no image can be captioned: 5 with an empty caption (")
    assert not list(pictures.rglob("*.txt"))


@pytest.mark.parametrize(
    ("folder", "words", "message"),
    [
        ("nowhere", [], "nowhere does not exist: check the path"),
        ("empty", [], "empty holds no images ("),
        ("mine/val/4.png", [], "4.png is a file, not a folder of images: give the folder that holds it"),
        ("mine", ["--num_beams", "0"], "--num_beams 0 must be 1 or more"),
        ("bad", [], "bad: no image can be captioned: 1 unreadable (a.png)"),
        ("latin", [], "a.txt, line 1: is not UTF-8; save the file as UTF-8, for example with `iconv "),
    ],
)
def test_bad_input_of_captions_gives_one_line_error(
    folder: str,
    words: list[str],
    message: str,
    reader: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("empty", "bad", "latin"):
        Path(name).mkdir()
        if name != "empty":
            (Path(name) / "a.png").write_bytes(b"bad")
    Path("latin/a.txt").write_bytes("Käse".encode("latin-1"))
    capsys.readouterr()
    assert caption(Path(folder), reader, *words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("error: ")
    assert message in output.err.splitlines()[-1]
    assert not list(pictures.rglob("*.txt"))


def test_a_captioner_must_be_named(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "captions", "mine"]) == 2
    assert "the following arguments are required: --captioner" in capsys.readouterr().err
    assert main(["data", "captions", "mine", "--captioner", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no run, checkpoint or release nowhere; emoji, icons and upsampler ship with this "
        "package\n"
    )


def test_images_are_captioned_and_sharded(
    reader: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two verbs one after the other."""
    assert caption(pictures, reader) == 0
    assert main(["data", "shards", "mine", "--out", "shards"]) == 0
    output = capsys.readouterr().out
    assert "4 images" in output
    assert "shards/validation-000000.tar" in output
    assert "splits " not in output
