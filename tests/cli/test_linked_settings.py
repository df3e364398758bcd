"""Sizes that follow from other settings are filled in by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imagen_pl.cli.training_cli import TrainingCLI
from tests.helpers.runs import tiny_config


def configured(config: dict, folder: Path) -> dict:
    """The model section of a configuration as a run would keep it."""
    file = folder / "linked.yaml"
    file.write_text(yaml.safe_dump(config))
    cli = TrainingCLI(["--config", str(file), "--runs_dir", str(folder / "runs")], run=False)
    model: dict = yaml.safe_load(cli.configuration())["model"]
    return model


def test_sizes_follow_the_text_encoder_and_the_discriminator(
    tmp_path: Path, photos: Path, bert: Path
) -> None:
    config = tiny_config(photos, bert)
    channels = config["model"]["discriminator"]["init_args"]["channels"]
    maps = min(channels, key=int)
    for network in ("generator", "discriminator"):
        config["model"][network]["init_args"].pop("text_dim")
    config["model"]["discriminator"]["init_args"]["final_dim"] = 12
    config["model"]["losses"] = [
        {"class_path": "imagen_pl.losses.text_matching.ImageTextContrastive"},
        {
            "class_path": "imagen_pl.losses.reconstruction.Reconstruction",
            "init_args": {"map_resolution": int(maps), "from_resolution": 2 * int(maps)},
        },
    ]

    model = configured(config, tmp_path)

    for network in ("generator", "discriminator"):
        assert model[network]["init_args"]["text_dim"] == 16
    contrastive, reconstruction = (loss["init_args"] for loss in model["losses"])
    assert (contrastive["image_dim"], contrastive["text_dim"]) == (12, 16)
    assert reconstruction["map_channels"] == channels[maps]
    assert reconstruction["finer_channels"] == channels[2 * int(maps)]
    assert reconstruction["image_resolution"] == max(map(int, channels))


def test_a_size_that_was_set_to_something_else_is_reported(tmp_path: Path, photos: Path, bert: Path) -> None:
    config = tiny_config(photos, bert)
    config["model"]["discriminator"]["init_args"]["text_dim"] = 24

    with pytest.raises(Exception, match="text_dim is 24, but the text encoder gives 16"):
        configured(config, tmp_path)
