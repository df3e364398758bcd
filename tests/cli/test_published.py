"""The recipes of configs/published/: each trains a batch, at full width, on stand-ins for its data."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml

from imagen_pl.cli.main import main
from tests.helpers.image_files import noise, write_coco, write_images
from tests.helpers.runs import REPOSITORY
from tests.helpers.transformers_models import save_bert

RECIPES = {path.stem: path for path in (REPOSITORY / "configs/published").glob("*.yaml")}


def cifar10(path: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"img": [noise(seed=i) for i in range(4)], "label": [0, 3, 5, 9]}
    table = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(path))


def faces(path: Path) -> None:
    write_images(path, [f"00000/{i:05}.png" for i in range(4)], side=512)


def animals(path: Path) -> None:
    names = [
        f"{part}/{kind}/{i}.jpg" for part in ("train", "val") for kind in ("cat", "dog", "wild") for i in "01"
    ]
    write_images(path, names, side=256)


STAND_INS: dict[str, Callable[[Path], object]] = {
    "cifar10_r3gan": cifar10,
    "ffhq256_r3gan": faces,
    "celebahq1024_progan": faces,
    "afhq256_starganv2": animals,
    "coco256_df_gan": lambda path: write_coco(path, side=256),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_published_recipe_trains_a_batch_at_full_width(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(RECIPES[name].read_text())
    STAND_INS[name](Path("source"))
    stage = recipe["growth"]["stages"][0]
    changes: dict[str, Any] = {
        "growth": {"stages": [{**stage, "batch_size": 2}, *recipe["growth"]["stages"][1:]]},
        "model": {"metrics": []},
        "checkpoint": {"monitor": None},
        "data": {"num_workers": 0, "val_samples": 2, "val_batch_size": 2, "epoch_kimg": 0.002},
        "samples": {"captions": []},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 0},
    }
    if "ffhq" in name:  # both penalties at 256 px: 10 GiB at once, and half of it one image after the other
        changes["model"]["accumulate"] = 2
    if recipe["model"]["text_encoder"]["class_path"].endswith("FrozenTextEncoder"):
        changes["model"]["text_encoder"] = {"init_args": {"name": str(save_bert(Path("bert"), 384))}}
    Path("small.yaml").write_text(yaml.safe_dump(changes))

    words = ["--config", str(RECIPES[name]), "--config", "small.yaml", "--data.source.path", "source"]
    assert main(["fit", *words, "--name", "run"]) == 0, capsys.readouterr().err

    checkpoint = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["images_seen"] == 2
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_published_recipe_says_its_score_and_that_it_is_not_trained(name: str) -> None:
    comment = RECIPES[name].read_text().split("\n\n")[0]
    assert "Not trained here." in comment
    score = re.search(r"Published:\s(?:# )?FID ([\d.]+\d)", comment)
    assert score is not None
    row = next(
        line
        for line in (REPOSITORY / "docs/published.md").read_text().splitlines()
        if f"`{name}.yaml`" in line
    )
    assert f"FID {score[1]}" in row
    assert re.findall(r"arXiv:\d{4}\.\d{5}", comment)[0] in row
