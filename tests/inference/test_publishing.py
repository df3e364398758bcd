"""`from_pretrained`, `save_pretrained` and `push_to_hub`, and what the hub reads from the cards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from imagen_pl import TextToImage, load
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.model_card import model_card
from tests.cli.test_push import EVALUATION
from tests.helpers.image_files import noise
from tests.helpers.runs import Tiny


def pixels(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_model_goes_to_the_hub_and_back(trained: Tiny, hub: Path) -> None:
    model = TextToImage.from_pretrained(trained.run, device="cpu")
    names = model.push_to_hub("me/tiny", prompts=["a red heart"], evaluations=[EVALUATION])
    assert names == ["README.md", "config.json", "model.safetensors", "samples.png"]
    back = TextToImage.from_pretrained("me/tiny", device="cpu")
    half = model.save_pretrained("half", prompts=["a red heart"])
    assert pixels(back.sample("a red heart")) == pixels(load(half).sample("a red heart"))
    assert (half / "config.json").read_bytes() == (hub / "me/tiny/config.json").read_bytes()

    shutil.copytree(hub / "me/tiny", hub / "me/tiny@v1")
    description = json.loads((hub / "me/tiny@v1/config.json").read_text())
    (hub / "me/tiny@v1/config.json").write_text(json.dumps({**description, "images_seen": 7}))
    assert TextToImage.from_pretrained("me/tiny", revision="v1").description["images_seen"] == 7
    with pytest.raises(UserError, match=r"revision v1 applies to models on the hub, but .* is a local path"):
        TextToImage.from_pretrained(trained.run, revision="v1")
    with pytest.raises(UserError, match="nobody is not a name on the hub: give OWNER/NAME"):
        model.push_to_hub("nobody")


def test_saved_files_are_those_of_push_with_the_folder_s_name(trained: Tiny, hub: Path) -> None:
    folder = load(trained.run).save_pretrained(
        "hearts", licence="cc0-1.0", prompts=["a red heart"], dtype=torch.float32
    )
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc0-1.0", "imagen_pl")
    assert card.text.lstrip().startswith("# hearts")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert json.loads((folder / "config.json").read_text())["captions"] == []  # may not be published
    assert pixels(load(folder).sample("a red heart")) == pixels(load(trained.run).sample("a red heart"))


def test_the_hub_s_parser_reads_the_scores(trained: Tiny, hub: Path) -> None:
    inception = {**EVALUATION["scores"][0], "extractor": "inception_v3", "recall": None}
    Path("test.json").write_text(json.dumps(EVALUATION))
    more = {
        "scores": [inception],
        "split": "train",
        "clip_score": 21.5,
        "clip": "openai/clip-vit-base-patch32",
    }
    Path("train.json").write_text(json.dumps({**EVALUATION, **more}))
    assert main(["push", str(trained.run), "me/tiny", "--evaluation", "test.json", "train.json"]) == 0
    data = ModelCard.load(hub / "me/tiny/README.md").data
    assert data.model_name == "tiny"
    found = {(r.dataset_split, r.metric_type): r for r in data.eval_results}
    for key, value in {
        ("test", "frechet_distance"): 111.91,
        ("test", "recall"): 0.0,
        ("test", "retrieval_top5"): 0.246,
        ("train", "fid"): 111.91,
        ("train", "kid"): 0.0421,
        ("train", "clip_score"): 21.5,
    }.items():
        assert found[key].metric_value == value
        assert (found[key].task_type, found[key].dataset_name) == ("text-to-image", "Folder images")
    assert found["test", "frechet_distance"].metric_name == "Fréchet distance, efficientnet_lite1 features"
    assert ("train", "recall") not in found
    assert ("test", "fid") not in found


def test_a_card_without_an_evaluation_claims_no_score() -> None:
    parts = {"generator": {"class_path": "a.StyleGenerator"}, "text_encoder": {"class_path": "a.Encoder"}}
    about = {"resolution": 32, "imagen_pl": "0.1.0", "images_seen": 1, **parts}
    data: Any = ModelCard(model_card("me/tiny", about)).data
    assert data.eval_results is None


def test_a_pushed_upsampler_s_card_shows_what_it_enlarges(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    noise(16, 12, 0).save("wide.png")
    noise(16, 16, 1).save("square.png")
    words = ["push", "upsampler", "me/larger", "--images", "wide.png", "square.png"]
    assert main(words) == 0
    assert "Use it: imagen-pl upscale me/larger picture.png" in capsys.readouterr().out
    card = ModelCard.load(hub / "me/larger/README.md")
    assert card.data.pipeline_tag == "image-to-image"
    assert "imagen-pl upscale me/larger picture.png" in card.text
    for absent in ("model.sample(", "red heart", "long sentences"):
        assert absent not in card.text
    with Image.open(hub / "me/larger/samples.png") as sheet:
        cells = np.asarray(sheet.convert("RGB"))
    given = noise(16, 16, 1).convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    given = given.resize((128, 128), Image.Resampling.NEAREST)
    rows, columns = range(20), range(128, cells.shape[1] - 127)
    assert any((cells[y : y + 128, x : x + 128] == np.asarray(given)).all() for y in rows for x in columns)

    assert main(["upscale", "me/larger", "square.png", "--out", "large.png"]) == 0
    with Image.open("large.png") as large:
        assert large.size == (64, 64)


def test_without_pictures_the_shipped_icons_are_enlarged(tmp_path: Path) -> None:
    folder = load("upsampler").save_pretrained(tmp_path / "larger")
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width > 4 * 256  # four pictures of 64 px, and below each its result of 256 px
        assert sheet.height > 2 * 256
