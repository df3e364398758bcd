"""`imagen-pl push`, the card, and models by their name on the hub. The hub is a folder here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalTokenNotFoundError
from PIL import Image
from safetensors.torch import load_file

from imagen_pl import load
from imagen_pl.cli import push
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.model_card import model_card
from imagen_pl.inference.publishing import ReleaseSettings, write_release
from imagen_pl.metrics.evaluation import Evaluation, MemorisationScores
from imagen_pl.metrics.retrieval import Retrieval
from imagen_pl.storage import hub_upload
from imagen_pl.storage.run_folder import RunFolder
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny

SCORES = Evaluation(
    extractor="efficientnet_lite1",
    pictures=501,
    real=501,
    frechet=111.91,
    kernel=0.0421,
    mmd=3.25,
    precision=0.25,
    recall=0.0,
    density=0.111,
    coverage=0.222,
    retrieval=Retrieval(top1=0.08, top5=0.246, mrr=0.171, queries=501, candidates=100),
    shuffled=Retrieval(top1=0.01, top5=0.056, mrr=0.05, queries=501, candidates=100),
    diversity=0.333,
    drawn_again=(100, 4),
    memorisation=MemorisationScores(ratio=0.95, near=0.011, training_images=4457),
    frechet_of_halves=56.3,
)
EVALUATION: dict[str, Any] = {
    "pictures": 501,
    "real_images": 501,
    "split": "test",
    "resolution": 8,
    "seed": 0,
    "scores": [asdict(SCORES)],
}


def test_pushed_model_can_be_loaded_from_the_hub(
    trained: Tiny, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("evaluation.json").write_text(json.dumps(EVALUATION))
    words = ["push", str(trained.run), "me/tiny-hearts", "--evaluation", "evaluation.json"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "me/tiny-hearts: README.md, config.json, model.safetensors, samples.png" in output
    described = json.loads((hub / "me/tiny-hearts/config.json").read_text())
    assert (described["data"], described["captions"]) == (None, [])  # they are not for others
    card = (hub / "me/tiny-hearts/README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    assert yaml.safe_load(head)["pipeline_tag"] == "text-to-image"
    assert 'load("me/tiny-hearts")' in body
    assert "501 samples, one per caption, against 501 real images of the split test, 8 px, seed 0" in body
    assert "| | test, efficientnet_lite1 |" in body
    for cell in (
        "501, 501", "111.91", "56.30 (251, 250)", "0.0421", "3.250", "0.250", "0.000", "0.111", "0.222",
        "8.0% of 100 (1.0%)", "24.6% of 100 (5.6%)", "0.171 (0.050)", "0.333 (100 x 4)", "0.950 (4,457)",
        "1.1%",
    ):  # fmt: skip
        assert f" | {cell} |\n" in body
    assert "501 images are few" in body
    assert "None of these is FID" in body
    with Image.open(hub / "me/tiny-hearts/samples.png") as samples:
        assert samples.size[0] > 500

    own, back = load(trained.run), load("me/tiny-hearts")
    assert back.resolution == own.resolution == 8
    assert main(["sample", "me/tiny-hearts", "a red heart"]) == 0


def test_a_release_with_the_discriminator_trains_both_networks_further(
    trained: Tiny, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(trained.run), "me/both", "--with-discriminator"]) == 0
    listed = "README.md, config.json, discriminator.safetensors, model.safetensors, samples.png"
    assert f"me/both: {listed}" in capsys.readouterr().out
    stored = json.loads((hub / "me/both/config.json").read_text())["discriminator"]
    assert stored["class_path"] == "imagen_pl.models.discriminators.multiscale.MultiscaleDiscriminator"
    assert (stored["init_args"]["final_dim"], stored["init_args"]["text_dim"]) == (8, 16)
    weights = load_file(hub / "me/both/discriminator.safetensors")
    loaded = RunFolder(trained.run).checkpoint_to_load()
    assert loaded is not None
    checkpoint = torch.load(loaded, weights_only=True)["state_dict"]
    own = {
        n.removeprefix("discriminator."): t for n, t in checkpoint.items() if n.startswith("discriminator.")
    }
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name].half(), weights[name]) for name in own)
    card = (hub / "me/both/README.md").read_text()
    size = (hub / "me/both/discriminator.safetensors").stat().st_size / 1e6
    assert (
        f"The discriminator is included, for fine-tuning: `discriminator.safetensors`, {size:.1f} MB" in card
    )
    assert "`--model.generator.init_from me/both`" in card

    words = ["--name", "further", "--trainer.max_steps", "2", "--model.generator.init_from", "me/both"]
    assert main(["fit", *trained.words, *words]) == 0
    said = capsys.readouterr().err
    assert "Initialised from me/both: blocks 4, 8; generator and discriminator" in said


def test_a_release_has_no_discriminator_unless_it_is_requested(
    trained: Tiny, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(trained.run), "me/tiny"]) == 0
    assert not (hub / "me/tiny/discriminator.safetensors").exists()
    assert "discriminator" not in json.loads((hub / "me/tiny/config.json").read_text())
    assert "discriminator" not in (hub / "me/tiny/README.md").read_text()
    error = one_line_error(["push", "me/tiny", "me/again", "--with-discriminator"], capsys)
    assert "me/tiny/model.safetensors has no discriminator to save: give the run" in error

    # Also if the pushed model has one.
    assert (
        main(["export", str(trained.run), "--to", "safetensors", "--with-discriminator", "--out", "both"])
        == 0
    )
    assert "both: config.json, discriminator.safetensors, model.safetensors" in capsys.readouterr().out
    assert main(["push", "both", "me/small"]) == 0
    assert not (hub / "me/small/discriminator.safetensors").exists()
    assert "discriminator" not in json.loads((hub / "me/small/config.json").read_text())
    assert main(["export", "both", "--to", "onnx", "--with-discriminator", "--out", "onnx"]) == 2
    assert "--with-discriminator goes with --to safetensors only" in capsys.readouterr().err


def test_no_path_of_this_machine_is_published(trained: Tiny, hub: Path, photos: Path) -> None:
    assert main(["push", str(trained.run), "me/tiny"]) == 0
    for name in ("README.md", "config.json"):
        text = (hub / "me/tiny" / name).read_text()
        assert str(photos) not in text
        assert str(trained.run) not in text
    assert "read by FolderSource" in (hub / "me/tiny/README.md").read_text()
    assert "None were measured." in (hub / "me/tiny/README.md").read_text()


@pytest.mark.parametrize("own_file", [False, True])
def test_only_a_source_that_declares_it_has_settings_and_captions_published(
    own_file: bool, trained: Tiny, tmp_path: Path
) -> None:
    """A user's own Parquet file may hold emoji too, but nothing of it may be published."""
    model = load(trained.run)
    path = str(tmp_path / "secret" / "Emoji.parquet") if own_file else None
    source: dict[str, Any] = {
        "class_path": "imagen_pl.data.sources.emoji.EmojiSource",
        "init_args": {"path": path},
    }
    model.description |= {"data": source, "captions": ["a secret caption"]}
    release = write_release(model, tmp_path / "release", "me/tiny", ReleaseSettings(prompts=["a red heart"]))
    description = json.loads((release / "config.json").read_text())
    published: dict[str, Any] = {"data": source, "captions": ["a secret caption"]}
    assert {k: description[k] for k in published} == (
        {"data": None, "captions": []} if own_file else published
    )
    assert ("Noto Emoji (Apache-2.0" in (release / "README.md").read_text()) is not own_file
    assert "secret" not in (release / "README.md").read_text()


def test_card_names_the_emoji_s_authors() -> None:
    described = {
        "resolution": 32,
        "imagen_pl": "0.1.0",
        "images_seen": 61_280,
        "generator": {"class_path": "a.StyleGenerator", "init_args": {"latent_dim": 64}},
        "text_encoder": {"class_path": "a.FrozenTextEncoder", "init_args": {"name": "somewhere"}},
        "teacher_networks": ["efficientnet_lite0"],
        "data": {"class_path": "imagen_pl.data.sources.emoji.EmojiSource"},
    }
    card = model_card("me/emoji", described)
    for said in ("Twemoji (CC-BY 4.0", "61,280", "StyleGenerator (latent_dim 64)", "| efficientnet_lite0 |"):
        assert said in card
    assert "somewhere" not in card
    assert "None were measured." in card


def test_card_has_several_splits_and_further_sections() -> None:
    described = {
        "resolution": 32,
        "imagen_pl": "0.1.0",
        "images_seen": 1,
        "generator": {"class_path": "a.StyleGenerator"},
        "text_encoder": {"class_path": "a.FrozenTextEncoder"},
    }
    scores = [{**EVALUATION, "split": split} for split in ("train", "test")]
    card = model_card("emoji", described, evaluations=scores, further={"How it was made": "By hand."})
    assert (
        card.index("of the split train")
        < card.index("of the split test")
        < card.index("| | train, efficientnet_lite1 | test, efficientnet_lite1 |")
        < card.index("None of these is FID")
    )
    assert card.count("None of these is FID") == 1
    assert " | 24.6% of 100 (5.6%) | 24.6% of 100 (5.6%) |" in card
    assert card.index("## Scores") < card.index("## How it was made\n\nBy hand.") < card.index("## Limits")


def test_bad_input_gives_one_line_error(
    trained: Tiny, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["push", str(trained.run)]
    assert main([*words, "nobody"]) == 2
    assert "nobody is not a name on the hub: give OWNER/NAME" in capsys.readouterr().err
    Path("other.json").write_text("{}")
    assert main([*words, "me/tiny", "--evaluation", "other.json"]) == 2
    assert "other.json is not an evaluation.json" in capsys.readouterr().err

    def refuse(*_: Any, **__: Any) -> None:
        raise LocalTokenNotFoundError

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert main([*words, "me/tiny"]) == 2
    assert "not logged in to the Hugging Face hub" in capsys.readouterr().err

    def disconnected(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", disconnected)
    assert main([*words, "me/tiny"]) == 2
    assert "the Hugging Face hub cannot be reached (Name or service not known)" in capsys.readouterr().err

    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("an error of this program")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", broken)
    with pytest.raises(TypeError, match="an error of this program"):
        main([*words, "me/tiny"])
    with pytest.raises(UserError, match=r"model me/none: .* cannot be downloaded from the Hugging Face hub"):
        load("me/none")
    with pytest.raises(UserError, match="there is no run, checkpoint or release runs/none"):
        load("runs/none")


def test_the_hub_is_asked_before_the_model_is_opened(
    trained: Tiny, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was opened first")

    def disconnected(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    def nobody(*_: Any, **__: Any) -> None:
        raise LocalTokenNotFoundError

    monkeypatch.setattr(push, "open_model", opened)
    words = ["push", str(trained.run), "me/tiny"]
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", nobody)
    assert main(words) == 2
    assert "not logged in to the Hugging Face hub" in capsys.readouterr().err

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", disconnected)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the Hugging Face hub cannot be reached (Name or service not known)" in error

    # Without a network, being logged in does not matter.
    monkeypatch.setattr(hub_upload, "hub_has_address", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", nobody)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be reached (its address is not found): check the network" in error
