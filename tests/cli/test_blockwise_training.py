"""Blockwise training set on the command line and in YAML."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from imagen_pl.cli.main import main
from tests.helpers.runs import Tiny

FEW = ["--trainer.max_steps", "40"]  # 16 batches of 4 px, then 4 of 8 px
NEWEST = {"class_path": "FreezeOldBlocks", "init_args": {"fresh_discriminator": True}}


def overlay(**sections: Any) -> list[str]:
    Path("overlay.yaml").write_text(yaml.safe_dump(sections))
    return ["--config", "overlay.yaml"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    held: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return held


def test_policy_from_yaml_is_in_the_saved_configuration_and_the_logs(tiny: Tiny) -> None:
    words = overlay(
        blockwise_training={"policy": NEWEST, "learning_rate_factors": {"discriminator.shared": 0.5}}
    )
    assert main(["fit", *tiny.words, *words, *FEW]) == 0
    kept = yaml.safe_load((tiny.run / "config.yaml").read_text())["blockwise_training"]
    assert kept["policy"]["class_path"] == "imagen_pl.callbacks.block_policies.FreezeOldBlocks"
    assert kept["learning_rate_factors"] == {"discriminator.shared": 0.5}
    with (tiny.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    blocks = {int(row["images_seen"]): row["blockwise_training/generator_blocks"] for row in rows}
    assert (float(blocks[64]), float(blocks[72])) == (2, 1)
    # The resumed run reads the same configuration.
    assert main(["fit", "--config", str(tiny.run / "config.yaml"), "--ckpt_path", "last", *FEW]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--blockwise_training.learning_rate_factors", "{generator.16: 0.1}"],
            "error: blockwise_training.learning_rate_factors names generator.16, which the networks do not "
            "have: use "
            "discriminator.shared, discriminator.4, discriminator.8, generator.shared, generator.4, "
            "generator.8, or a whole network\n",
        ),
        (
            [
                "--blockwise_training.policy",
                "Alternate",
                "--blockwise_training.policy.kimg=1",
                "--blockwise_training.policy.groups=[[generators]]",
            ],
            "error: blockwise_training.policy names generators, which the networks do not have: use "
            "discriminator.",
        ),
        (
            [
                *("--blockwise_training.policy", "FreezeOldBlocks"),
                *("--growth.stages", "[{resolution: 8, kimg: 1, batch_size: 4, fade_kimg: 0}]"),
            ],
            "error: blockwise_training.policy FreezeOldBlocks needs growth, but growth.stages has only one "
            "stage: add stages",
        ),
        (
            ["--blockwise_training.policy", "FreezeOldBlocks", "--blockwise_training.policy.kimg=-1"],
            "error: FreezeOldBlocks: kimg -1.0 must be more than 0\n",
        ),
    ],
    ids=["factor", "group", "no growth", "kimg"],
)
def test_bad_policies_give_one_line_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["fit", *tiny.words, *words]) == 2
    output = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert output.startswith(message)
