"""Class labels in place of captions, from the command line: train, draw a class, refuse another prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imagen_pl import load
from imagen_pl.cli.main import main
from tests.helpers.commands import one_line_error
from tests.helpers.image_files import write_images
from tests.helpers.runs import Tiny

CLASSES = ["cat", "dog", "owl"]


def test_a_run_by_class_draws_its_classes_alone(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    for i, image in enumerate(write_images(Path("animals"), [f"{i:02}.png" for i in range(12)], side=16)):
        image.with_suffix(".txt").write_text(f"{CLASSES[i % 3]}\n")
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    for network in ("generator", "discriminator"):
        config["model"][network]["init_args"].pop("text_dim")
    config["model"]["generator"]["init_args"].pop("prior")
    # As docs/classic-gans.md says.
    config["model"]["text_encoder"] = {
        "class_path": "imagen_pl.models.text.labels.ClassLabels",
        "init_args": {"classes": CLASSES},
    }
    config["samples"]["captions"] = CLASSES
    config["data"]["source"]["init_args"]["path"] = "animals"
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", *tiny.words]) == 0
    assert main(["sample", str(tiny.run), "owl", "--out", "owl.png"]) == 0
    error = one_line_error(["sample", str(tiny.run), "owls", "--out", "owls.png"], capsys)
    assert "'owls' is none of the 3 classes of this model: try 'owl'" in error
    owl, cat = load(tiny.run, device="cpu").sample(["owl", "cat"])
    assert owl.tobytes() != cat.tobytes()
