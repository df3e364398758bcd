"""`imagen-pl evaluate`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.evaluation_data import read_real_set
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny
from tests.helpers.text_encoders import save_clip


@pytest.fixture
def evaluated(trained: Tiny) -> list[str]:
    """Arguments that evaluate the tiny run, in its working folder."""
    return ["evaluate", str(trained.run), "--split", "train", "--distractors", "3"]


def test_evaluate_writes_scores_report_and_sheet(
    evaluated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*evaluated, "--out", "found"]) == 0
    output = capsys.readouterr().out
    found = json.loads(Path("found/evaluation.json").read_text())

    assert found["split"] == "train"
    assert found["resolution"] == 8
    (scores,) = found["scores"]
    assert scores["extractor"] == "efficientnet_lite0"
    assert scores["frechet"] > 0
    assert 0 <= scores["precision"] <= 1
    assert scores["retrieval"]["candidates"] == 4
    assert scores["memorisation"] is None
    assert "| not measured: the split train is not held out from training images |" in output
    assert Path("found/evaluation.md").read_text().strip() in output
    assert "| Fréchet distance (less is better) |" in output
    assert "12 images are few" in output
    assert "of the split train at 8 px, seed 0" in output
    with Image.open("found/evaluation.png") as sheet:
        assert min(sheet.size) > 100


def test_long_wait_is_announced_and_training_images_are_sampled(
    trained: Tiny, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen_pl.cli.evaluation._LONG_WAIT_S", -1.0)
    monkeypatch.setattr("imagen_pl.cli.evaluation_data._LEAST_TRAIN", 5)
    monkeypatch.setattr("imagen_pl.cli.evaluation_data._TRAIN_PER_PICTURE", 1)
    words = ["evaluate", str(trained.run), "--val_fraction", "0.25", "--data", str(photos)]
    assert main(words) == 0
    assert "efficientnet_lite0 features of 5 training images: about " in capsys.readouterr().err
    assert json.loads(Path("evaluation/evaluation.json").read_text())["training_images"] == 5


def test_evaluation_is_deterministic(evaluated: list[str]) -> None:
    """The second time, features of real images come from the cache."""
    for out in ("first", "second"):
        assert main([*evaluated, "--out", out]) == 0
    assert Path("first/evaluation.json").read_text() == Path("second/evaluation.json").read_text()
    assert main([*evaluated, "--out", "third", "--seed", "1"]) == 0
    assert Path("third/evaluation.json").read_text() != Path("first/evaluation.json").read_text()
    assert main([*evaluated, "--out", "guided", "--guidance", "3"]) == 0
    plain, guided = (json.loads(Path(f"{out}/evaluation.json").read_text()) for out in ("first", "guided"))
    assert (plain["guidance"], guided["guidance"]) == (1.0, 3.0)
    assert plain["scores"][0]["frechet"] != guided["scores"][0]["frechet"]
    assert "truncation 1, guidance 3, refine 0" in Path("guided/evaluation.md").read_text()
    assert main([*evaluated, "--out", "refined", "--refine", "5"]) == 0
    refined = json.loads(Path("refined/evaluation.json").read_text())
    assert (plain["refine"], refined["refine"]) == (0, 5)
    assert plain["scores"][0]["frechet"] != refined["scores"][0]["frechet"]


def test_held_out_images_equal_those_of_training(trained: Tiny, photos: Path) -> None:
    """A folder has no split: the same images are held out as in training, by their names."""
    assert main(["evaluate", str(trained.run), "--val_fraction", "0.25", "--data", str(photos)]) == 0
    found = json.loads(Path("evaluation/evaluation.json").read_text())
    assert found["split"] == "validation"
    assert 2 <= found["real_images"] < 12
    assert found["scores"][0]["memorisation"]["ratio"] > 0


def test_real_images_are_held_out_and_cut_as_in_training(trained: Tiny, tmp_path: Path) -> None:
    data = yaml.safe_load((trained.run / "config.yaml").read_text())["data"]
    model = load(trained.run)
    assert model.description["fit"] == data["fit"] == "crop"
    assert model.description["background"] == data["background"]
    assert model.description["val_fraction"] == data["val_fraction"]
    wide = tmp_path / "wide"
    wide.mkdir()
    for i in range(40):
        Image.new("RGB", (32, 16), "red").save(wide / f"{i}.png")
        (wide / f"{i}.txt").write_text(f"red {i}")
    model.description |= {"fit": "pad", "background": "black", "val_fraction": 0.5}
    asked = Namespace(
        data=str(wide), split=None, val_fraction=None, num_images=2, seed=0, train_images=None, model="wide"
    )

    found = read_real_set(asked, model)

    assert not found.real[:, :, 0].any()  # the uppermost row is padding
    assert (found.real[:, 0, 4] > 200).all()
    asked.val_fraction = 0.25
    assert len(read_real_set(asked, model).real) < len(found.real)
    model.description["val_fraction"] = 0.0
    assert len(read_real_set(asked, model).real) < len(found.real)  # the command line wins
    asked.val_fraction = None
    with pytest.raises(UserError, match=r"trained on all images of .*wide \(data\.val_fraction 0\)"):
        read_real_set(asked, model)


def test_release_is_scored_with_clip(evaluated: list[str], trained: Tiny, tmp_path: Path) -> None:
    load(trained.run).save("release")
    clip = save_clip(tmp_path / "clip")
    words = ["evaluate", "release", *evaluated[2:], "--clip", str(clip)]
    assert main([*words, "--extractors", "efficientnet_lite1"]) == 0
    found = json.loads(Path("evaluation/evaluation.json").read_text())
    assert [each["extractor"] for each in found["scores"]] == ["efficientnet_lite1", "clip"]
    assert 0 <= found["clip_score"] <= 100
    assert "CLIP score" in Path("evaluation/evaluation.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_images", "1"], "--num_images 1 must be 2 or more"),
        (["--truncation", "2"], "--truncation 2.0 is not between 0 and 1"),
        (["--guidance", "nan"], "--guidance nan is not between 0 and 10"),
        (["--val_fraction", "0"], "--val_fraction 0.0 is not above 0"),
        (["--data", "nowhere"], "nowhere does not exist: check the path"),
        (["--split", "tests"], "has no split tests: it has train"),
        (["--extractors", "no/such-network"], "no/such-network"),
    ],
)
def test_bad_input_gives_one_line_error(
    words: list[str], said: str, evaluated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = one_line_error([*evaluated, *words], capsys)
    assert said in output


def test_network_used_in_training_is_refused_as_extractor(
    evaluated: list[str], trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    release = load(trained.run).save("release")
    described = json.loads((release / "config.json").read_text())
    (release / "config.json").write_text(
        json.dumps({**described, "teacher_networks": ["efficientnet_lite0"]})
    )
    words = ["evaluate", "release", *evaluated[2:]]
    assert main([*words, "--extractors", "efficientnet_lite0"]) == 2
    assert "a network that trained a model must not score it: use --extractors efficientnet_lite1" in (
        capsys.readouterr().err
    )
    assert main(words) == 0
    assert json.loads(Path("evaluation/evaluation.json").read_text())["scores"][0]["extractor"] == (
        "efficientnet_lite1"
    )
