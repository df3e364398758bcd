"""init_from another run, and a custom block, on the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.storage.run_folder import RunFolder
from tests.cli.test_blockwise_training import FEW, overlay, weights
from tests.helpers.blocks import LoudBlock
from tests.helpers.commands import one_line_error
from tests.helpers.runs import REPOSITORY, Tiny

GROWN = {"growth": {"stages": [{"resolution": 16, "kimg": 1.0, "batch_size": 8}]}}
CHANNELS = {4: 8, 8: 8, 16: 4}


def larger() -> list[str]:
    networks = {name: {"init_args": {"channels": CHANNELS}} for name in ("generator", "discriminator")}
    policy = {"class_path": "FreezeOldBlocks", "init_args": {"stem_resolution": 8}}
    return overlay(
        **GROWN, model=networks, blockwise_training={"policy": policy}, checkpoint={"monitor": None}
    )


@pytest.mark.parametrize("kind", ["run", "checkpoint", "release"])
def test_run_starts_from_the_weights_of_init_from(
    trained: Tiny, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    stem = load(trained.run)
    source = {
        "run": trained.run,
        "checkpoint": trained.run / "checkpoints/best.ckpt",
        "release": stem.save("released"),
    }[kind]
    words = ["fit", *trained.words, *larger(), "--name", "larger", "--trainer.max_steps", "8"]
    assert main([*words, "--model.generator.init_from", str(source)]) == 0
    networks = "generator only: this release has no discriminator"
    networks = networks if kind == "release" else "generator and discriminator"
    assert f"Initialised from {source}: blocks 4, 8; {networks}" in capsys.readouterr().err
    shutil.rmtree(trained.run)
    shutil.rmtree("released")
    held = weights(Path("runs/larger/checkpoints/last.ckpt"))
    for name, tensor in stem.generator.state_dict().items():
        if name != "latent_mean":
            assert torch.equal(held[f"generator.{name}"], tensor), name

    # The other run is deleted: sampling, releases and a resume do not need it.
    release = load("runs/larger").save("larger")
    described = json.loads((release / "config.json").read_text())["generator"]
    assert "init_from" not in described["init_args"]
    assert described["init_args"]["channels"] == {str(r): c for r, c in CHANNELS.items()}
    first, again = load("runs/larger").sample("a red heart"), load(release).sample("a red heart")
    assert first[0].size == (16, 16)
    assert first[0].tobytes() == again[0].tobytes()
    resume = [
        "fit",
        "--config",
        "runs/larger/config.yaml",
        "--ckpt_path",
        "last",
        "--trainer.max_steps",
        "12",
    ]
    assert main(resume) == 0


@pytest.mark.parametrize("kind", ["run", "release"])
def test_a_run_starts_from_the_discriminator_of_another(
    trained: Tiny, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """At learning rate 0 the discriminator stays as it was at the first step."""
    source = trained.run
    if kind == "release":
        source = load(trained.run).save("released", with_discriminator=True)
    few = ["--trainer.max_steps", "4", "--model.discriminator_optimizer.init_args.lr", "0.0"]
    few += ["--model.generator.init_from", str(source), "--name", "other", "--seed_everything", "5"]
    assert main(["fit", *trained.words, *few]) == 0
    assert f"{source}: blocks 4, 8; generator and discriminator" in capsys.readouterr().err
    loaded = RunFolder(trained.run).checkpoint_to_load()
    assert loaded is not None
    saved, first = weights(loaded), weights(Path("runs/other/checkpoints/last.ckpt"))
    names = [name for name in saved if name.startswith("discriminator.")]
    assert len(names) > 10
    for name in names:
        assert torch.equal(saved[name], first[name]), name


def test_a_discriminator_of_other_sizes_gives_one_line_error(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    release = load(trained.run).save("released", with_discriminator=True)
    words = ["fit", *trained.words, "--name", "other", "--model.generator.init_from", str(release)]
    assert main([*words, "--model.discriminator.final_dim", "4"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "to_final.bias is (8,) in the file and (4,) here" in error
    assert "Use the settings of the stored discriminator up to 8 px" in error
    (release / "discriminator.safetensors").unlink()
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: release released: discriminator.safetensors is missing")
    (release / "discriminator.safetensors").write_bytes(b"not weights")
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: release released cannot be read: discriminator.safetensors: ")


def test_missing_or_mismatched_init_from_gives_one_line_error(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *trained.words, "--name", "other"]
    assert main([*words, "--model.generator.init_from", "runs/nothing"]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output == "error: there is no run, checkpoint or release runs/nothing"
    words += ["--model.generator.init_from", str(trained.run), "--model.generator.style_dim", "12"]
    assert main(words) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert (
        "best.ckpt contains another architecture: latent_mean is (8,) in the file and (12,) here; mapping."
        in output
    )
    assert "use the settings of the stored generator up to 8 px" in output


def test_custom_block_by_class_path_trains(tiny: Tiny) -> None:
    block = {"class_path": "tests.helpers.blocks.LoudBlock", "init_args": {"gain": 3.0}}
    words = overlay(model={"generator": {"init_args": {"block": block}}})
    assert main(["fit", *tiny.words, *words, *FEW]) == 0
    kept = yaml.safe_load((tiny.run / "config.yaml").read_text())["model"]["generator"]["init_args"]
    assert kept["block"] == block
    for model in (load(tiny.run), load(load(tiny.run).save("released"))):
        blocks = [block for block in model.generator.blocks().values() if isinstance(block, LoudBlock)]
        assert [(block.gain, block.plan.resolution) for block in blocks] == [(3.0, 4), (3.0, 8)]


def test_class_that_is_not_a_block_gives_one_line_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.generator.block", "torch.nn.Identity"]
    output = one_line_error(["fit", *tiny.words, *words], capsys)
    assert "torch.nn.Identity" in output


def test_released_model_is_fine_tuned_on_other_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command in configs/experiment/finetune.yaml, with stages of one batch each."""
    monkeypatch.chdir(tmp_path)
    files = ["experiment/emoji64.yaml", "data/folder.yaml", "experiment/finetune.yaml"]
    command = (REPOSITORY / "configs/experiment/finetune.yaml").read_text().splitlines()[1]
    assert [f"configs/{file}" for file in files] == re.findall(r"--config (\S+)", command)
    words = [word for file in files for word in ("--config", str(REPOSITORY / "configs" / file))]
    stages = [{"resolution": r, "kimg": 0.002, "batch_size": 2, "fade_kimg": 0} for r in (8, 16, 32, 64)]
    few = {"growth": {"stages": stages}, "model": {"metrics": []}, "checkpoint": {"monitor": None}}
    words += overlay(**few, data={"min_size": 8, "source": {"init_args": {"path": str(photos)}}})
    assert main(["fit", *words, "--name", "mine", "--trainer.max_steps", "16"]) == 0
    loaded = "blocks 4, 8, 16, 32, 64; generator only: this release has no discriminator"
    assert f"Initialised from emoji: {loaded}" in capsys.readouterr().err
    before, after = load("emoji", "cpu"), load("runs/mine", "cpu")
    assert (after.resolution, list((tmp_path / "runs/mine/samples").glob("*.png")) != []) == (64, True)
    moved = {
        name: (tensor - after.generator.state_dict()[name]).abs().max().item()
        for name, tensor in before.generator.state_dict().items()
        if name.endswith("weight")
    }
    assert 0 < max(moved.values()) < 0.02  # eight small steps away, not re-initialised
