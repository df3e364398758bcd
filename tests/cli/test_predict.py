"""`imagen-pl test` and `imagen-pl predict`, the verbs that LightningCLI has besides fit and validate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from imagen_pl.cli.main import main
from tests.helpers.commands import one_line_error
from tests.helpers.image_files import write_photos
from tests.helpers.runs import Tiny


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_predict_draws_for_the_held_out_captions_into_the_runs_folder(
    trained: Tiny, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(trained.run / "config.yaml")
    assert main(["predict", "--config", config, "--seed", "5"]) == 0
    rows = rows_of(trained.run / "predictions")
    captions = {path.read_text().strip() for path in photos.glob("*.txt")}
    assert 0 < len(rows) < len(captions)
    assert {row["prompt"] for row in rows} <= captions
    assert [row["seed"] for row in rows] == list(range(5, 5 + len(rows)))
    with Image.open(trained.run / "predictions" / str(rows[0]["file_name"])) as picture:
        assert picture.size == (8, 8)
    assert f"{trained.run}/predictions: {len(rows)} pictures and metadata.jsonl" in capsys.readouterr().out
    assert main(["predict", "--config", config]) == 2
    assert "already contains a metadata.jsonl: name another folder with --out" in capsys.readouterr().err


def test_predict_draws_a_file_of_prompts(trained: Tiny) -> None:
    Path("prompts.csv").write_text("prompt,seed,kind\na red heart,3,shape\na cat,,animal\n")
    words = ["predict", "--config", str(trained.run / "config.yaml"), "--ckpt_path", "best"]
    assert main([*words, "--prompts", "prompts.csv", "--out", "drawn"]) == 0
    rows = rows_of(Path("drawn"))
    assert [(row["prompt"], row["seed"], row["kind"]) for row in rows] == [
        ("a red heart", 3, "shape"),
        ("a cat", 1, "animal"),
    ]


def test_test_scores_the_test_split(
    trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(trained.run / "config.yaml")
    split = tmp_path / "split"
    for name, count in (("train", 6), ("validation", 2), ("test", 5)):
        write_photos(split / name, count=count, side=16)
    assert main(["test", "--config", config, "--data.source.path", str(split)]) == 0
    output = capsys.readouterr().out
    assert f"{trained.run}/checkpoints/last.ckpt: 160 images seen, 8 px" in output
    assert "test/mean_colour" in output
    assert "val/" not in output
    assert yaml.safe_load((trained.run / "config.yaml").read_text())["data"]["val_split"] == "validation"


def test_test_without_a_test_split_gives_one_line_error(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    output = one_line_error(["test", "--config", str(trained.run / "config.yaml")], capsys)
    assert "test" in output


def test_partly_grown_model_draws_at_full_size_on_request(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny.words, "--max_images", "16"]) == 0
    words = ["sample", str(tiny.run), "a cat", "--singles", "drawn"]
    for more, side in ([], 4), (["--resolution", "8"], 8):
        assert main([*words, *more]) == 0
        with Image.open("drawn/000000.png") as picture:
            assert picture.size == (side, side)
    capsys.readouterr()
    assert main([*words, "--resolution", "64"]) == 2
    assert capsys.readouterr().err == "error: resolution 64 is not one the generator has: 4, 8\n"
