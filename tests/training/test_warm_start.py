"""init_from: copying the weights that two networks share, by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from imagen_pl.callbacks.block_policies import FreezeOldBlocks
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining
from imagen_pl.errors import UserError
from imagen_pl.metrics.frechet import FrechetDistance
from imagen_pl.schedules import Stage
from imagen_pl.training.warm_start import initialise
from tests.helpers.networks import awaken, small_discriminator, small_generator
from tests.helpers.training import SHORT, AtEachBatch, SaveAt, assert_same, tiny_gan, train, weights_of

OTHER = {4: 8, 8: 8, 16: 4}
MULTISCALE = "imagen_pl.models.discriminators.multiscale.MultiscaleDiscriminator"


def checkpoint(path: Path, grown_to: int = 16, **settings: Any) -> dict[str, torch.Tensor]:
    """Another run's checkpoint without a discriminator, and its moving average."""
    other = small_generator(OTHER, **settings)
    awaken(other)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.add_(1)
    held = {f"ema.generator.{name}": tensor for name, tensor in other.state_dict().items()}
    torch.save({"state_dict": held, "images_seen": 9, "growth_resolution": grown_to}, path)
    return weights_of(other)


@pytest.mark.parametrize("grown_to", [8, 16])
def test_shared_parameters_are_loaded(grown_to: int, tmp_path: Path) -> None:
    held = checkpoint(tmp_path / "other.ckpt", grown_to)
    generator = small_generator({**OTHER, 32: 4}, noise=True)
    first = weights_of(generator)
    stem = initialise(generator, small_discriminator(), tmp_path / "other.ckpt")
    assert stem.blocks == [r for r in (4, 8, 16) if r <= grown_to]
    now = weights_of(generator)
    taken = {n for n in now if not torch.equal(now[n], first[n])}
    assert taken == {n for n in held if not n.startswith("grown.16.") or grown_to == 16}
    assert all(torch.equal(now[name], held[name]) for name in taken)
    assert {"latent_mean", "first_map.weight", "mapping.join.weight"} <= taken
    assert not any("noise" in name or name.startswith("grown.32.") for name in taken)


def test_blocks_of_a_larger_model_are_ignored(tmp_path: Path) -> None:
    held = checkpoint(tmp_path / "other.ckpt")
    generator = small_generator({4: 8, 8: 8})
    assert initialise(generator, small_discriminator(), tmp_path / "other.ckpt").blocks == [4, 8]
    assert_same(weights_of(generator), {n: t for n, t in held.items() if not n.startswith("grown.16.")})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"style_dim": 12}, r"mapping.latent_layers.0.weight is \(12, 5\) in the file and \(8, 5\) here"),
        ({"noise": True}, r"grown.4.layers.0.noise \(8,\) is only in the file"),
        ({"mapping_layers": 3}, r"mapping.latent_layers.2.weight \(8, 8\) is only in the file"),
    ],
)
def test_differing_shapes_are_named(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "other.ckpt", **other)
    generator = small_generator(OTHER)
    before = weights_of(generator)
    with pytest.raises(UserError, match=message) as output:
        initialise(generator, small_discriminator(), tmp_path / "other.ckpt")
    assert "other.ckpt contains another architecture" in str(output.value)
    assert "use the settings of the stored generator up to 16 px" in str(output.value)
    assert_same(weights_of(generator), before)


def checkpoint_of_both(path: Path, grown_to: int = 16, class_path: str = MULTISCALE, **settings: Any) -> None:
    """Another run's checkpoint, whose discriminator has these settings and weights that all differ by 1."""
    checkpoint(path, grown_to)
    about = torch.load(path, weights_only=True)
    for name, tensor in small_discriminator(**settings).state_dict().items():
        about["state_dict"][f"discriminator.{name}"] = tensor + 1
    about["config"] = yaml.safe_dump({"model": {"discriminator": {"class_path": class_path}}})
    torch.save(about, path)


@pytest.mark.parametrize("grown_to", [8, 16])
def test_the_discriminator_takes_the_blocks_that_both_have_and_that_were_grown(
    grown_to: int, tmp_path: Path
) -> None:
    checkpoint_of_both(tmp_path / "other.ckpt", grown_to)
    discriminator = small_discriminator({**OTHER, 32: 4})
    first = weights_of(discriminator)
    done = initialise(small_generator(OTHER), discriminator, tmp_path / "other.ckpt")
    assert done.networks == "generator and discriminator"
    stored = {name: tensor + 1 for name, tensor in small_discriminator().state_dict().items()}
    taken = {n for n in stored if not n.startswith("grown.16.") or grown_to == 16}
    assert {"main_head.text.weight", "extra_heads.8.conv.weight", "grown.4.first.weight"} <= taken
    assert_same(weights_of(discriminator), {n: stored[n] if n in taken else first[n] for n in first})


def test_a_discriminator_of_other_sizes_is_an_error_and_no_network_changes(tmp_path: Path) -> None:
    checkpoint_of_both(tmp_path / "other.ckpt", final_dim=12)
    networks = small_generator(OTHER), small_discriminator()
    before = [weights_of(network) for network in networks]
    with pytest.raises(
        UserError, match=r"to_final.weight is \(12, 128\) in the file and \(8, 128\) here"
    ) as error:
        initialise(*networks, tmp_path / "other.ckpt")
    assert "Use the settings of the stored discriminator up to 16 px" in str(error.value)
    assert "imagen-pl export" in str(error.value)
    for network, weights in zip(networks, before, strict=True):
        assert_same(weights_of(network), weights)


def test_a_discriminator_of_another_class_is_left_out(tmp_path: Path) -> None:
    """As in emoji64_projected.yaml, which continues from a run with another discriminator."""
    joint = "imagen_pl.models.discriminators.joint.JointDiscriminator"
    checkpoint_of_both(tmp_path / "other.ckpt", class_path=joint)
    discriminator = small_discriminator()
    before = weights_of(discriminator)
    done = initialise(small_generator(OTHER), discriminator, tmp_path / "other.ckpt")
    assert done.networks == f"generator only: the stored discriminator is a {joint}, this one a {MULTISCALE}"
    assert_same(weights_of(discriminator), before)


def test_training_starts_from_init_from_and_a_resume_does_not_read_it(tmp_path: Path) -> None:
    """Grown from 16 to 32 px with a frozen stem, as in StyleGAN-XL; the same for average and generator."""
    other, middle = tmp_path / "other.ckpt", tmp_path / "middle.ckpt"
    stages = [Stage(32, kimg=1, batch_size=4)]
    smaller = tiny_gan()
    train(smaller, 96, [SaveAt({96: other})])  # its average is not its generator
    starts: list[dict[str, torch.Tensor]] = []
    ends = []
    for ckpt_path in (None, middle):
        gan = tiny_gan(generator={"init_from": str(other)})
        turns = BlockwiseTraining(FreezeOldBlocks(stem_resolution=16))
        look = AtEachBatch(before=lambda s, _: starts.append(weights_of(s)))
        train(gan, 16, [turns, look, SaveAt({8: middle})], stages=stages, ckpt_path=ckpt_path)
        ends.append(weights_of(gan))
        other.unlink(missing_ok=True)
    assert_same(*ends)
    stem = {
        n: t
        for n, t in weights_of(smaller.ema.generator).items()
        if not n.startswith("grown.32.") and n != "latent_mean"  # which is measured, not learnt
    }
    first = starts[0]
    for name, tensor in stem.items():
        for place in ("generator", "ema.generator"):
            assert torch.equal(first[f"{place}.{name}"], tensor), name
            torch.testing.assert_close(ends[0][f"{place}.{name}"], tensor, atol=1e-6, rtol=0)
        assert torch.equal(ends[0][f"generator.{name}"], tensor), name
    moved = {n for n in first if n.startswith("generator.") and not torch.equal(first[n], ends[0][n])}
    assert {n.split(".")[2] for n in moved if n.startswith("generator.grown")} == {"32"}


def test_teacher_networks_of_init_from_are_inherited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names are reported, and kept in checkpoints and resumes."""
    monkeypatch.setattr(FrechetDistance, "prepare", lambda self, fid_weights=None: None)
    other, saved = tmp_path / "other.ckpt", [tmp_path / f"{name}.ckpt" for name in "ab"]
    train(tiny_gan(), 8, [SaveAt({8: other})], stages=SHORT)
    torch.save({**torch.load(other, weights_only=True), "teacher_networks": ["efficientnet_lite0"]}, other)
    for ckpt_path, images, file in zip((None, saved[0]), (8, 16), saved, strict=True):
        gan = tiny_gan(generator={"init_from": str(other)}, metrics=[FrechetDistance(kernel_images=0)])
        with caplog.at_level(logging.WARNING):
            train(gan, images, [SaveAt({images: file})], stages=SHORT, ckpt_path=ckpt_path)
        assert torch.load(file, weights_only=True)["teacher_networks"] == ["efficientnet_lite0"]
    assert caplog.text.count("efficientnet_lite0 was used to train this model") == 2
