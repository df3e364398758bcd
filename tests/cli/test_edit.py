"""`imagen-pl interpolate` and `imagen-pl edit`, and the metadata of image files."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageSequence

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.interpolation import blend, interpolate, slerp
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.types import TextFeatures
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny

HEART, CAT = "a red heart", "a cat, fluent style"


@pytest.fixture
def model(trained_once: Path) -> TextToImage:
    return load(trained_once / "runs/tiny", device="cpu")


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


def apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(pixels(a) - pixels(b)).max())


# ------------------------------------------------------------------ the way between


@pytest.mark.parametrize(("guidance", "refine"), [(1.0, 0), (2.0, 0), (1.0, 30)])
@pytest.mark.parametrize("loop", [False, True])
def test_keyframes_equal_the_images_of_sample(
    model: TextToImage, loop: bool, guidance: float, refine: int
) -> None:
    keyframes = [(HEART, 3), (CAT, 3), ("a cat", 4)]
    steps = list(interpolate(model, keyframes, frames=5, loop=loop, guidance=guidance, refine=refine))
    assert len(steps) == (15 if loop else 11)
    for k, (prompt, seed) in enumerate(keyframes):
        (expected,) = model.sample(prompt, seed=seed, guidance=guidance, refine=refine)
        assert apart(steps[5 * k], expected) <= 1
        (plain,) = model.sample(prompt, seed=seed, refine=0)
        assert (apart(expected, plain) > 1) == ((guidance, refine) != (1.0, 0))


def test_steps_are_even_and_small(model: TextToImage) -> None:
    steps = list(interpolate(model, [(HEART, 0), (CAT, 9)], frames=40))
    whole = apart(steps[0], steps[-1])
    between = [apart(a, b) for a, b in pairwise(steps[1:-1])]
    assert whole > 10
    assert max(between) < whole


def test_slerp_interpolates_direction_and_length() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 16, generator=draw), 3 * torch.randn(5, 16, generator=draw)
    assert torch.allclose(slerp(a, b, torch.zeros(5)), a, atol=1e-5)
    assert torch.allclose(slerp(a, b, torch.ones(5)), b, atol=1e-5)
    middle = slerp(a, b, torch.full((5,), 0.5))
    assert torch.allclose(middle.norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2, atol=1e-4)
    to_a, to_b = (torch.cosine_similarity(middle, end, dim=1) for end in (a, b))
    assert torch.allclose(to_a, to_b, atol=1e-5)
    assert torch.allclose(slerp(a, a, torch.full((5,), 0.3)), a, atol=1e-5)


def test_tokens_of_the_other_caption_fade() -> None:
    def text(tokens: int, value: float) -> TextFeatures:
        mask = torch.arange(3)[None] < tokens
        return TextFeatures(torch.full((1, 3, 2), value) * mask[..., None], mask, torch.full((1, 2), value))

    a, b = text(1, 1.0), text(3, 2.0)
    masks = [blend(a, b, torch.tensor([t])).mask.tolist()[0] for t in (0.0, 0.25, 1.0)]
    assert masks == [[True, False, False], [True] * 3, [True] * 3]
    quarter = blend(a, b, torch.tensor([0.25]))
    assert quarter.tokens[0, :, 0].tolist() == [1.25, 0.5, 0.5]
    assert quarter.pooled[0].tolist() == [1.25, 1.25]


def test_too_few_keyframes_raise(model: TextToImage) -> None:
    with pytest.raises(UserError, match="name two keyframes"):
        interpolate(model, [(HEART, 0)])
    with pytest.raises(UserError, match="frames 0 must be 1 or more"):
        interpolate(model, [(HEART, 0), (CAT, 0)], frames=0)


# ------------------------------------------------------------------ films


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_interpolate_writes_an_animation(
    trained: Tiny, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["interpolate", str(trained.run), HEART, CAT, "--frames", "4", "--fps", "10", "--loop"]
    assert main([*words, "--out", f"out/film.{kind}"]) == 0
    assert capsys.readouterr().out == f"out/film.{kind}: 8 frames, 0.8 s\n"
    with Image.open(f"out/film.{kind}") as film:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
        assert film.info["loop"] == 0
        assert film.info["duration"] == 100
    assert len(frames) == 8
    assert frames[0].size == (256, 256)
    if kind == "webp":  # lossless
        drawn = load(trained.run).sample(HEART, refine=0)[0].resize((256, 256), Image.Resampling.NEAREST)
        assert apart(frames[0], drawn) <= 1


def test_interpolate_writes_a_video_between_latents(trained: Tiny) -> None:
    words = ["interpolate", str(trained.run), HEART, "--num_latents", "3", "--frames", "4"]
    assert main([*words, "--out", "film.mp4"]) == 0
    with av.open("film.mp4") as film:
        (stream,) = film.streams.video
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
        frames = [frame.to_image() for frame in film.decode(stream)]
    assert len(frames) == 9
    drawn = load(trained.run).sample(HEART, refine=0)[0].resize((256, 256), Image.Resampling.NEAREST)
    assert np.abs(pixels(frames[0]) - pixels(drawn)).mean() < 12


def test_missing_av_gives_one_line_error(
    trained: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["interpolate", str(trained.run), HEART, CAT, "--out", "film.mp4"]) == 2
    assert "pip install av" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([HEART], "give two or more prompts"),
        ([HEART, CAT, "--out", "film.avi"], "film.avi must end in .gif, .webp or .mp4"),
        ([HEART, CAT, "--fps", "0"], "--fps 0 must be more than 0"),
        ([HEART, CAT, "--frames", "0"], "frames 0 must be 1 or more"),
        ([HEART, "--num_latents", "0"], "--num_latents 0 must be 1 or more"),
        ([HEART, CAT, "--truncation", "3"], "truncation 3.0 is not between 0 and 1"),
        ([HEART, CAT, "--guidance", "30"], "guidance 30.0 is not between 0 and 10"),
    ],
)
def test_bad_input_of_interpolate_gives_one_line_error(
    words: list[str], said: str, trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    output = one_line_error(["interpolate", str(trained.run), *words], capsys)
    assert said in output
    assert not list(Path().glob("film.*"))


# ------------------------------------------------------------------ edit


def test_edit_sheet_has_the_same_latents(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", str(trained.run), HEART, "--to", CAT, "a cat", "--num_images", "2", "--seed", "5"]
    assert main(words) == 0
    assert "edit.png: one row per latent, seeds from 5" in capsys.readouterr().out
    model = load(trained.run)
    with Image.open("edit.png") as sheet:
        assert sheet.info["prompt"] == HEART
        assert sheet.info["to"] == f"{CAT}\na cat"
        first = sheet.convert("RGB").crop((6, 6, 102, 102)).resize((8, 8), Image.Resampling.NEAREST)
        beside = sheet.convert("RGB").crop((108, 6, 204, 102)).resize((8, 8), Image.Resampling.NEAREST)
    assert apart(first, model.sample(HEART, seed=5)[0]) <= 1
    assert apart(beside, model.sample(CAT, seed=5)[0]) <= 1


def test_edit_draws_with_the_given_guidance(trained: Tiny) -> None:
    words = ["edit", str(trained.run), HEART, "--to", CAT, "--num_images", "1", "--guidance", "2"]
    assert main(words) == 0
    with Image.open("edit.png") as sheet:
        assert sheet.info["guidance"] == "2.0"
        first = sheet.convert("RGB").crop((6, 6, 102, 102)).resize((8, 8), Image.Resampling.NEAREST)
    assert apart(first, load(trained.run).sample(HEART, guidance=2.0)[0]) <= 1


def test_edits_and_drafts_refine(trained: Tiny) -> None:
    run, model = str(trained.run), load(trained.run)
    for words in (
        ["edit", run, HEART, "--to", CAT, "--num_images", "1"],
        ["variants", run, HEART, "--styles", "noto"],
    ):
        assert main([*words, "--out", "refined.png", "--refine", "30"]) == 0
        assert main([*words, "--out", "plain.png", "--refine", "0"]) == 0
        with Image.open("refined.png") as refined, Image.open("plain.png") as plain:
            assert refined.info["refine"] == "30"
            assert plain.info["refine"] == "0"
            assert refined.size == plain.size
            assert apart(refined, plain) > 1
    main(["edit", run, HEART, "--to", CAT, "--num_images", "1", "--refine", "30"])
    with Image.open("edit.png") as sheet:
        first = sheet.convert("RGB").crop((6, 6, 102, 102)).resize((8, 8), Image.Resampling.NEAREST)
    assert apart(first, model.sample(HEART, refine=30)[0]) <= 1


def test_bad_input_of_edit_gives_one_line_error(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", str(trained.run), HEART, "--to", CAT]
    assert main([*words, "--out", "edit.gif"]) == 2
    assert "--out edit.gif must be a .png, .webp or .jpg file" in capsys.readouterr().err
    assert main([*words, "--num_images", "0"]) == 2
    assert "--num_images 0 must be 1 or more" in capsys.readouterr().err


# ------------------------------------------------------------------ pictures in files


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_images_have_provenance_metadata(trained: Tiny, kind: str) -> None:
    words = ["sample", str(trained.run), HEART, "ein Herz ♥", "--seed", "7", "--format", kind]
    assert main([*words, "--singles", "single", "--out", f"grid.{kind}"]) == 0
    for file, prompt in ((f"single/000001.{kind}", "ein Herz ♥"), (f"grid.{kind}", f"{HEART}\nein Herz ♥")):
        with Image.open(file) as picture:
            if kind == "png":
                output = dict(picture.info)
            else:
                output = json.loads(picture.getexif()[ExifTags.Base.ImageDescription])
        assert output["prompt"] == prompt
        assert str(output["seed"]) == "7"
        assert output["model"] == str(trained.run)
        assert int(output["images_seen"]) > 0
        assert output["software"].startswith("imagen_pl ")


def test_json_output_is_one_line_per_image(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(trained.run), HEART, CAT, "--json"]
    assert main([*words, "--singles", "single"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        {"file": "single/000000.png", "prompt": HEART, "seed": 0},
        {"file": "single/000001.png", "prompt": CAT, "seed": 0},
    ]
    Path("prompts.txt").write_text(f"{HEART}\n{CAT}\n")
    assert main(["sample", str(trained.run), "--prompts", "prompts.txt", "--out", "many", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == ["many/000000.png", "many/000001.png"]
    assert all(Path(row["file"]).is_file() for row in rows)
