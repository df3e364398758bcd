"""`imagen-pl upscale` and `sample --upscaler`, with an upsampler that `fit` trained for a few batches."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from imagen_pl import load
from imagen_pl.cli import open_model
from imagen_pl.cli.main import main
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.types import Growth
from tests.helpers.commands import one_line_error
from tests.helpers.fakes import TinyText
from tests.helpers.image_files import write_photos
from tests.helpers.networks import small_generator
from tests.helpers.runs import REPOSITORY


@pytest.fixture(scope="module")
def upsampler(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe with narrow networks, 8 to 32 px, on squares of photos of 48 px."""
    folder = tmp_path_factory.mktemp("upsampler")
    changes = {
        "growth": {"stages": [{"resolution": 32, "kimg": 1, "batch_size": 4}]},
        "samples": {"columns": 3},
        "model": {
            "generator": {
                "init_args": {"resolution": 32, "channels": [8, 8], "blocks": 1, "embedding_dim": 8}
            },
            "discriminator": {"init_args": {"channels": {16: 8, 32: 8}, "heads_at": []}},
            "text_encoder": {"init_args": {"name": str(bert)}},
            "losses": [
                {"class_path": "imagen_pl.losses.image_matching.PixelMatching"},
            ],
            "metrics": [{"class_path": "imagen_pl.metrics.fidelity.Fidelity"}],
        },
        "checkpoint": {"monitor": "val/psnr", "mode": "max"},
        "data": {
            "source": {
                "class_path": "FolderSource",
                "init_args": {"path": str(write_photos(folder / "photos", 24, side=48))},
            },
            "crop_from": 48,
            "epoch_kimg": 0.016,
            "num_workers": 0,
            "val_fraction": 0.25,
        },
        "trainer": {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(changes))
    config = REPOSITORY / "configs/experiment/upsampler.yaml"
    words = ["fit", "--config", str(config), "--config", str(folder / "small.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*words, "--max_images", "32", "--name", "upsampler"]) == 0
    return folder / "runs/upsampler"


def photo(path: Path, size: tuple[int, int] = (20, 13), mode: str = "RGB") -> Path:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_training_scores_and_shows_its_squares(upsampler: Path) -> None:
    rows = (upsampler / "metrics.csv").read_text().splitlines()
    assert "val/psnr" in rows[0]
    (grid,) = (upsampler / "samples").glob("*.png")
    labels_and_images = Image.open(grid).size
    assert labels_and_images[0] > 3 * 96  # three columns
    assert labels_and_images[1] > 3 * 96  # given, enlarged, true


def test_a_picture_is_enlarged(upsampler: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = photo(tmp_path / "bell.png")
    out = tmp_path / "new/large.png"
    words = ["upscale", str(upsampler), str(small), "--prompt", "a bell", "--out", str(out)]

    assert main(words) == 0

    assert capsys.readouterr().out == f"{out}: 20 x 13 to 80 x 52 px\n"
    large = Image.open(out)
    assert large.size == (80, 52)
    assert large.info["prompt"] == "a bell"
    tiled = tmp_path / "tiled.png"
    assert main([*words[:-1], str(tiled), "--tile", "8"]) == 0
    difference = np.asarray(Image.open(tiled), np.int16) - np.asarray(large, np.int16)
    assert np.abs(difference).max() <= 1


def test_several_pictures_go_into_a_folder(upsampler: Path, tmp_path: Path) -> None:
    files = [photo(tmp_path / "a.png", mode="RGBA"), photo(tmp_path / "b.jpg"), photo(tmp_path / "c.bmp")]
    assert main(["upscale", str(upsampler), *map(str, files), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg", "c.png"]
    assert Image.open(tmp_path / "out/a.png").mode == "RGBA"


def test_a_picture_is_turned_as_its_exif_asks(upsampler: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4), "white").save(tmp_path / "turned.jpg", exif=exif)
    words = ["upscale", str(upsampler), str(tmp_path / "turned.jpg"), "--out", str(tmp_path / "out.png")]
    assert main(words) == 0
    assert Image.open(tmp_path / "out.png").size == (16, 32)


def test_sample_draws_and_enlarges(
    upsampler: Path, trained_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["sample", str(trained_once / "runs/tiny"), "a red heart", "--num_images", "2"]
    singles = ["--singles", str(tmp_path / "small")]
    assert main([*words, "--out", str(tmp_path / "a.png"), *singles]) == 0
    more = ["--upscaler", str(upsampler), "--upscaler_noise", "0"]
    singles = ["--singles", str(tmp_path / "large")]
    assert main([*words, "--out", str(tmp_path / "b.png"), *singles, *more]) == 0
    assert "2 pictures of 32 px" in capsys.readouterr().out

    small, large = (Image.open(tmp_path / part / "000000-1.png") for part in ("small", "large"))
    assert (small.size, large.size) == ((8, 8), (32, 32))
    assert large.info["upscaler"] == str(upsampler)
    assert main(["upscale", str(upsampler), str(tmp_path / "small/000000-1.png"), "--prompt", "a red heart",
                 "--out", str(tmp_path / "again.png")]) == 0  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), np.asarray(large))


@pytest.mark.parametrize(
    "words",
    [
        ["edit", "MODEL", "a red heart", "--to", "a blue heart", "--num_images", "1"],
        ["variants", "MODEL", "heart", "--styles", "red", "blue", "--num_images", "1"],
        ["interpolate", "MODEL", "a red heart", "a blue heart", "--frames", "2"],
        ["sheet", "MODEL", "BRIEF", "--num_images", "1"],
    ],
    ids=lambda words: words[0],
)
def test_every_sampling_verb_can_upscale(
    words: list[str], upsampler: Path, trained_once: Path, tmp_path: Path
) -> None:
    brief = tmp_path / "brief.txt"
    brief.write_text("a red heart\n")
    paths = {"MODEL": str(trained_once / "runs/tiny"), "BRIEF": str(brief)}
    words = [paths.get(word, word) for word in words]
    name = {"interpolate": "out.gif", "sheet": "out.html"}.get(words[0], "out.png")
    sizes = []
    for more in ([], ["--upscaler", str(upsampler)]):
        out = tmp_path / name
        assert main([*words, "--out", str(out), *more]) == 0
        if name == "out.html":
            page = out.read_text()
            picture = base64.b64decode(page.split("base64,")[1].split('"')[0])
            assert ("--upscaler" in page) is bool(more)
            sizes.append(Image.open(io.BytesIO(picture)).width)
        elif name == "out.png":
            assert Image.open(out).info.get("upscaler") == (str(upsampler) if more else None)
        else:  # animations are always written at 256 px
            frame = np.asarray(Image.open(out).convert("RGB"))
            sizes.append(8 if (frame == frame[::32, ::32].repeat(32, 0).repeat(32, 1)).all() else 32)
    assert sizes in ([], [8, 32])


def test_a_release_enlarges_as_the_run_does(upsampler: Path, tmp_path: Path) -> None:
    small = photo(tmp_path / "a.png")
    assert main(["export", str(upsampler), "--to", "safetensors", "--out", str(tmp_path / "release")]) == 0
    assert json.loads((tmp_path / "release/config.json").read_text())["resolution"] == 32
    for model, out in ((upsampler, "run.png"), (tmp_path / "release", "release.png")):
        assert main(["upscale", str(model), str(small), "--out", str(tmp_path / out)]) == 0
    run, release = (np.asarray(Image.open(tmp_path / name)) for name in ("run.png", "release.png"))
    assert np.array_equal(run, release)


@pytest.mark.parametrize(
    ("source", "resolution", "name", "enlarged"),
    [
        ("imagen_pl.data.sources.icons.IconSource", 64, None, True),
        ("EmojiSource", 64, None, True),
        ("imagen_pl.data.sources.icons.IconSource", 32, None, False),
        ("imagen_pl.data.sources.folder.FolderSource", 64, None, False),
        ("imagen_pl.data.sources.icons.IconSource", 64, "none", False),
        ("imagen_pl.data.sources.folder.FolderSource", 64, "shipped", True),
    ],
)
def test_icons_and_emoji_of_64_px_are_enlarged_by_default(
    source: str,
    resolution: int,
    name: str | None,
    enlarged: bool,
    upsampler: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(upsampler).save(tmp_path / "upsampler")
    monkeypatch.setattr(open_model, "RELEASED", tmp_path)
    given = str(tmp_path / "upsampler") if name == "shipped" else name
    description = {"data": {"class_path": source, "init_args": {}}}
    model = TextToImage(small_generator(), TinyText(), Growth(resolution), description)

    assert (open_model.open_upscaler(given, model) is not None) is enlarged


def test_a_transparent_picture_becomes_white_in_a_jpeg(upsampler: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    words = ["upscale", str(upsampler), str(tmp_path / "clear.png")]
    assert main([*words, "--out", str(tmp_path / "clear.jpg")]) == 0
    assert np.asarray(Image.open(tmp_path / "clear.jpg")).min() > 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "missing.png: there is no such file"),
        (["."], ".: it is a folder"),
        (["a.png", "--noise", "0.9"], "noise 0.9 is more than this upsampler has seen in training, 0.3"),
        (["text.png"], "text.png cannot be read as a picture"),
        (["a.png", "a.png"], "two of the enlarged pictures would have one name"),
        (["a.png", "--out", "a.png"], "--out a.png would replace a.png"),
        (["a.png", "--out", "."], "--out . would replace a.png"),
        (["a.png", "b.png", "--out", "c.png"], "--out c.png holds one picture"),
        (["a.png", "--out", "text.txt"], "--out text.txt is a file"),
        (["a.png", "--noise", "2"], "--noise 2.0 is not between 0 and 1"),
        (["a.png", "--tile", "0"], "--tile 0 must be 1 or more"),
    ],
)
def test_bad_input_gets_one_line(
    words: list[str],
    message: str,
    upsampler: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    for name in ("text.png", "text.txt"):
        (tmp_path / name).write_text("words")
    assert message in one_line_error(["upscale", str(upsampler), *words], capsys)


def test_noise_of_sample_is_checked_before_the_model_is_opened(
    upsampler: Path, trained_once: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["sample", str(trained_once / "runs/tiny"), "a cat", "--upscaler", str(upsampler)]
    assert "--upscaler_noise -1.0 is not between" in one_line_error(
        [*words, "--upscaler_noise", "-1"], capsys
    )
    assert "there is no run" in one_line_error([*words[:-1], "nowhere"], capsys)


@pytest.mark.parametrize("model", ["upscale", "sample"])
def test_a_model_that_draws_does_not_enlarge(
    model: str, trained_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    drawer = str(trained_once / "runs/tiny")
    words = ["upscale", drawer, str(photo(tmp_path / "a.png")), "--out", str(tmp_path / "out.png")]
    if model == "sample":
        words = ["sample", drawer, "a cat", "--upscaler", drawer, "--out", str(tmp_path / "out.png")]
    assert "which does not enlarge pictures" in one_line_error(words, capsys)
