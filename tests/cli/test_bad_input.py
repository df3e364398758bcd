"""Wrong data: `imagen-pl fit` gives a one-line error, or skips images with one warning."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from tests.helpers.commands import one_line_error
from tests.helpers.image_files import noise, truncated_jpeg, write_images, write_photos
from tests.helpers.runs import Tiny

SHORT = ["--trainer.max_steps", "8", "--data.num_workers", "0"]


def fit(tiny: Tiny, source: Path, *words: str) -> int:
    return main(["fit", *tiny.words, "--data.source.path", str(source), *SHORT, *words])


def empty(folder: Path) -> None:
    folder.mkdir()


def no_captions(folder: Path) -> None:
    write_images(folder, ["a.png", "b.png"])


def only_empty_captions(folder: Path) -> None:
    for image in write_images(folder, ["a.png", "b.png"]):
        image.with_suffix(".txt").write_text(" \n")


def only_one_pixel(folder: Path) -> None:
    write_photos(folder, 3, side=1)


def a_single_image(folder: Path) -> None:
    write_photos(folder, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "mine does not exist: check the path"),
        (empty, "mine holds no images (.avif, .bmp,"),
        (
            no_captions,
            "mine: none of its 2 images has a caption: write metadata.jsonl there, one line an image",
        ),
        (
            only_empty_captions,
            "mine: no image can be used for training: 2 with an empty caption (a.png, b.png)",
        ),
        (
            only_one_pixel,
            "mine: no image can be used for training: 3 smaller than 4 px (000.png, 001.png, 002.png)",
        ),
        (a_single_image, "mine has 1 image: give at least 2, or data.val_fraction 0"),
    ],
    ids=["missing", "empty", "no_captions", "empty_captions", "one_pixel", "single"],
)
def test_data_without_training_images_gives_one_line_error(
    tiny: Tiny,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    message: str,
) -> None:
    make(Path("mine"))
    assert fit(tiny, Path("mine")) == 2
    output = capsys.readouterr().err.splitlines()
    assert output[-1].startswith("error: ")
    assert message in output[-1]
    assert "Traceback" not in "\n".join(output)
    assert not tiny.run.joinpath("checkpoints").exists()


def test_bad_images_among_good_ones_are_counted_named_once_and_skipped(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_photos(Path("mine"), 6)
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    Image.new("RGB", (16, 16), "red").save(folder / "mute.png")
    Image.new("RGB", (16, 16), "red").save(folder / "bare.png")
    (folder / "cut.jpg").write_bytes(truncated_jpeg())
    for name, caption in (("pixel", "one pixel"), ("mute", ""), ("cut", "cut off")):
        (folder / f"{name}.txt").write_text(caption)
    with caplog.at_level(logging.WARNING):
        assert fit(tiny, folder, "--trainer.max_steps", "24") == 0
    skipped = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert sum("skipped 3 of 10 images" in line for line in skipped) == 1
    for problem in ("smaller than 4 px (pixel.png)", "with an empty caption (mute.png)", "(bare.png)"):
        assert sum(problem in line for line in skipped) == 1
    assert sum("cut.jpg" in r.getMessage() for r in caplog.records) == 1
    assert torch.load(tiny.run / "checkpoints/last.ckpt", weights_only=True)["images_seen"] == 48


def test_every_kind_of_image_trains(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("mine")
    folder.mkdir()
    picture = noise(24, 20)
    levels = np.linspace(0, 65535, 24 * 20).reshape(20, 24).astype(np.uint16)
    kinds = {
        "cmyk.jpg": picture.convert("CMYK"),
        "palette.png": picture.quantize(8),
        "sixteen.png": Image.fromarray(levels),
        "alpha.png": picture.convert("RGBA"),
        "grey.png": picture.convert("L"),
        "bits.png": picture.convert("1"),
        "moving.gif": picture.quantize(8),
        "photo.webp": picture,
    }
    for name, image in kinds.items():
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a {name}")
    assert fit(tiny, folder) == 0
    assert not [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]


def test_unknown_encoder_offline_gives_one_line_error(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.text_encoder.init_args.name", "nobody/no-such-encoder"]
    assert main(["fit", *tiny.words, *words]) == 2
    assert capsys.readouterr().err == (
        "error: text encoder nobody/no-such-encoder: there is no such folder, and it cannot be downloaded "
        "from the Hugging Face hub: check the name and the network, or pass a folder that contains the "
        "model\n"
    )


def test_offline_machine_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    from imagen_pl.models.text.encoder import FrozenTextEncoder

    def no_address(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    asked: list[object] = []
    original = transformers.AutoConfig.from_pretrained

    def recorded(path: str, **options: object) -> object:
        asked.append(options.get("local_files_only"))
        return original(path, **options)

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # which is no proxy
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", recorded)
    with pytest.raises(UserError, match="check the name and the network"):
        FrozenTextEncoder("nobody/no-such-encoder")
    assert asked == [True]


def test_folder_without_an_encoder_gives_one_line_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("encoder").mkdir()
    output = one_line_error(["fit", *tiny.words, "--model.text_encoder.init_args.name", "encoder"], capsys)
    assert "text encoder encoder: the folder contains no model that transformers can open" in output


def test_an_encoder_of_another_width_names_the_setting(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ["--model.generator.init_args.text_dim", "24"]
    assert main(["fit", *tiny.words, *wide]) == 2
    assert capsys.readouterr().err == (
        "error: text_dim is 24, but prior.init_args.text_dim is 16: set both to the size of the text "
        "encoder's vectors\n"
    )
    assert main(["fit", *tiny.words, *wide, "--model.generator.init_args.prior", "null"]) == 2
    assert capsys.readouterr().err == (
        "error: model.generator.init_args.text_dim is 24, but the text encoder gives 16: set it to 16\n"
    )


def test_unknown_stage_resolutions_give_one_line_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--growth.stages", '[{"resolution": 16, "kimg": 1, "batch_size": 4}]']
    assert main(["fit", *tiny.words, *words]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert "stages[0].resolution 16 is not a resolution of the generator: [4, 8]" in output
    assert "model.generator.init_args.channels" in output


def test_missing_device_gives_one_line_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    output = one_line_error(["fit", *tiny.words, "--trainer.accelerator", "cuda"], capsys)
    assert "CUDAAccelerator" in output


def test_validate_scores_a_checkpoint(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--config", str(trained.run / "config.yaml")]) == 0
    output = capsys.readouterr().out
    assert "runs/tiny/checkpoints/last.ckpt: 160 images seen, 8 px" in output
    assert "val/mean_colour" in output
    assert main(["validate", "--config", str(trained.run / "config.yaml"), "--model.metrics", "[]"]) == 0
    assert "no scores: name some in model.metrics" in capsys.readouterr().out
    shutil.rmtree(trained.run / "checkpoints")
    assert main(["validate", *trained.words]) == 2
    assert "checkpoints contains no checkpoint" in capsys.readouterr().err
