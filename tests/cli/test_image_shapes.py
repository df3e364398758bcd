"""A run on pictures of 12 x 8 px with transparency, and all that draws with its model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageSequence

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.demo.studio import Studio
from imagen_pl.errors import UserError
from imagen_pl.imaging.transparency import picture_on_white
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.models.generators.dcgan import DCGANGenerator
from imagen_pl.training.start_and_resume import check_shape
from tests.helpers.image_files import COLOURS
from tests.helpers.networks import small_generator
from tests.helpers.runs import Tiny, read_state, tiny_config
from tests.helpers.training import tiny_data, tiny_gan, train

SHAPED = ["--data.aspect_ratio", "1.5", "--data.alpha", "true"]
RUN = "runs/tiny"


def write_badges(folder: Path, count: int = 12) -> Path:
    """Discs on a transparent ground, 36 x 24 px, each with its caption."""
    folder.mkdir()
    y, x = np.mgrid[:24, :36]
    for i in range(count):
        alpha = (255 * (np.hypot(x - 18, y - 12) < 5 + i / 2)).astype(np.uint8)
        colour = np.full((24, 36, 3), (20 * i, 255 - 20 * i, 90), np.uint8)
        Image.fromarray(np.dstack([colour, alpha])).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"a {COLOURS[i % len(COLOURS)]} disc {i}\n")
    return folder


@pytest.fixture(scope="module")
def shaped_once(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the run was trained: 4 px, then 8 px."""
    folder = tmp_path_factory.mktemp("shaped")
    config = tiny_config(write_badges(folder / "badges"), bert)
    config["model"]["losses"] = [
        {"class_path": f"imagen_pl.losses.{name}", "init_args": arguments}
        for name, arguments in (
            ("self_supervised.Rotation", {}),
            ("image_matching.PixelMatching", {}),
            ("reconstruction.Reconstruction", {"map_resolution": 4, "from_resolution": 8}),
        )
    ]
    config["model"]["augment"] = {"class_path": "imagen_pl.models.augment.DiffAugment"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", *SHAPED]) == 0
    return folder


@pytest.fixture
def shaped(shaped_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextToImage:
    """The model of a copy of the run, in the working folder."""
    shutil.copytree(shaped_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return load(RUN, device="cpu")


def test_one_setting_of_the_data_shapes_both_networks(shaped: TextToImage) -> None:
    config = yaml.safe_load(Path(RUN, "config.yaml").read_text())["model"]
    for arguments in (
        config["generator"]["init_args"],
        config["discriminator"]["init_args"],
    ):
        assert (arguments["aspect_ratio"], arguments["image_channels"]) == (1.5, 4)
    assert config["losses"][2]["init_args"]["image_channels"] == 4
    assert (shaped.size, shaped.alpha) == ((12, 8), True)


def test_grids_of_a_run_show_the_shape_on_white(shaped: TextToImage) -> None:
    for file in Path(RUN, "samples").glob("*.png"):
        with Image.open(file) as grid:
            assert grid.mode == "RGB"
            assert grid.width > 1.5 * 3 * 96 / 2


def test_sample_writes_png_files_with_alpha_in_the_right_size(
    shaped: TextToImage, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", RUN, "a disc 3", "--num_images", "2", "--refine", "0"]
    assert main([*words, "--out", "x.png", "--singles", "one"]) == 0
    assert "2 pictures of 12 x 8 px" in capsys.readouterr().out
    files = sorted(Path("one").iterdir())
    for file, expected in zip(files, shaped.sample("a disc 3", num_images=2, refine=0), strict=True):
        with Image.open(file) as picture:
            assert (picture.mode, picture.size) == ("RGBA", (12, 8))
            assert picture.tobytes() == expected.tobytes()
    with Image.open("x.png") as grid:
        assert grid.mode == "RGBA"
    assert main([*words, "--out", "x.jpg", "--transparent", "--format", "webp", "--singles", "w"]) == 2
    assert main([*words, "--out", "x.jpg", "--singles", "w", "--format", "webp"]) == 0
    with Image.open("x.jpg") as grid:
        assert grid.mode == "RGB"
    with Image.open("w/000000-0.webp") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (12, 8))


def test_a_release_knows_its_shape_and_alpha(shaped: TextToImage) -> None:
    assert main(["export", RUN, "--to", "safetensors", "--out", "release"]) == 0
    description = json.loads(Path("release/config.json").read_text())
    assert description["alpha"] is True
    assert description["generator"]["init_args"]["aspect_ratio"] == 1.5
    again = load("release", device="cpu")
    assert (again.size, again.alpha) == ((12, 8), True)
    first, second = (m.sample("a disc 3", seed=5)[0] for m in (shaped, again))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_code_of_an_export_writes_straight_alpha(shaped: TextToImage, kind: str) -> None:
    assert main(["export", RUN, "--to", kind, "--out", "out"]) == 0
    readme = Path("out/README.md").read_text()
    assert "The fourth channel is alpha" in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    blocked = "import sys; sys.modules['imagen_pl'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd="out", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open("out/heart.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (12, 8))


def test_evaluate_scores_pictures_on_white(shaped: TextToImage) -> None:
    assert main(["evaluate", RUN, "--split", "train", "--distractors", "3", "--out", "found"]) == 0
    assert json.loads(Path("found/evaluation.json").read_text())["scores"][0]["frechet"] > 0


def test_a_picture_is_projected_with_its_shape_and_alpha(shaped: TextToImage) -> None:
    words = ["project", RUN, "badges/03.png", "--prompt", "a disc 3", "--steps", "2"]
    assert main([*words, "--out", "found.png", "--film", "found.gif"]) == 0
    with Image.open("found.png") as grid:
        assert grid.mode == "RGB"
    edited = ["edit", RUN, "a disc 3", "--to", "a disc 5", "--image", "badges/03.png", "--steps", "2"]
    assert main([*edited, "--out", "edited.png"]) == 0


def test_films_and_sheets_keep_the_shape_on_white(shaped: TextToImage) -> None:
    for ending in ("gif", "webp"):
        words = ["interpolate", RUN, "a disc 1", "a disc 9", "--frames", "3", "--out", f"film.{ending}"]
        assert main(words) == 0
        with Image.open(f"film.{ending}") as film:
            frames = [frame.convert("RGBA") for frame in ImageSequence.Iterator(film)]
        assert {frame.size for frame in frames} == {(264, 176)}
        assert min(np.asarray(frame)[..., 3].min() for frame in frames) == 255
    Path("brief.txt").write_text("a disc 1\na disc 2\n")
    for ending in ("pdf", "html"):
        assert main(["sheet", RUN, "brief.txt", "--num_images", "2", "--out", f"sheet.{ending}"]) == 0


def test_the_page_gives_png_files_with_alpha(shaped: TextToImage, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    studio = Studio(shaped, RUN, None, folder)
    drawn = studio.draw("a disc 3", 7, 1, 1, 2, 0)
    for (file, _), picture in zip(drawn, shaped.sample("a disc 3", 7, 2, refine=0), strict=True):
        with Image.open(file) as shown:
            assert (shown.mode, shown.size) == ("RGBA", (264, 176))
            assert shown.resize((12, 8), Image.Resampling.NEAREST).tobytes() == picture.tobytes()
    (svg, _) = studio.vector(drawn)
    assert 'width="12" height="8"' in Path(svg).read_text()
    assert Path(studio.film("a disc 1", "a disc 2", 0, 1, 1, 2)).is_file()


def test_a_run_is_resumed_and_validated_with_its_shape(shaped: TextToImage) -> None:
    words = ["--config", f"{RUN}/config.yaml"]
    assert main(["validate", *words]) == 0
    assert main(["fit", *words, "--ckpt_path", "last", "--trainer.max_steps", "60"]) == 0
    assert read_state(Path(RUN, "checkpoints/last.ckpt"))["alpha"] is True


def test_a_model_of_ones_own_trainer_knows_that_it_draws_alpha() -> None:
    gan = tiny_gan(*({"image_channels": 4, "aspect_ratio": 0.5},) * 2)
    train(gan, 16, data=tiny_data(alpha=True, aspect_ratio=0.5))
    (picture,) = TextToImage.from_module(gan).sample("x")
    assert (picture.mode, picture.size) == ("RGBA", (4, 8))  # the first stage
    assert TextToImage.from_module(gan).alpha
    assert picture_on_white(picture).mode == "RGB"


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.aspect_ratio", "1.3"], "aspect_ratio 1.3: images of 4 px height would not have a whole"),
        (["--data.aspect_ratio", "0"], "aspect_ratio 0: images of 4 px height"),
        (
            [f"--model.{name}.init_args.aspect_ratio=2" for name in ("generator", "discriminator")],
            "data.aspect_ratio is 1.0, which needs networks of aspect_ratio 1, but the generator's is 2: ",
        ),
        (
            [f"--model.{name}.init_args.image_channels=4" for name in ("generator", "discriminator")],
            "data.alpha is False, which needs networks of image_channels 3, but the generator's is 4: ",
        ),
        (
            ["--data.aspect_ratio", "2", "--model.generator.init_args.aspect_ratio", "1.5"],
            "aspect ratio 1.5, but MultiscaleDiscriminator reads 2: give both the same aspect_ratio",
        ),
        (["--data.alpha", "true", "--data.background", "black"], "has no effect with data.alpha"),
    ],
)
def test_shapes_that_do_not_fit_give_one_line(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["fit", *tiny.words, *words]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith("error: ")
    assert message in output


def test_networks_that_draw_squares_of_rgb_say_so() -> None:
    generator = DCGANGenerator({4: 8, 8: 3}, text_dim=16)
    check_shape(generator, SampleProcessing())
    with pytest.raises(UserError, match=r"data.aspect_ratio is 1.5, but DCGANGenerator draws squares only"):
        check_shape(generator, SampleProcessing(aspect_ratio=1.5))
    with pytest.raises(UserError, match=r"data.alpha is True, but DCGANGenerator draws RGB only: take Style"):
        check_shape(generator, SampleProcessing(alpha=True))
    check_shape(
        small_generator(aspect_ratio=1.5, image_channels=4), SampleProcessing(aspect_ratio=1.5, alpha=True)
    )
