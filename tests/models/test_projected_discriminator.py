"""ProjectedDiscriminator: frozen features, trained heads, and its effect on the generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import Hinge
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.losses.text_matching import ImageTextContrastive, MismatchedCaptions
from imagen_pl.models.discriminators.projected import FixedMixing, ProjectedDiscriminator
from imagen_pl.models.pretrained.backbones import TimmBackbone, as_shown, resized
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.networks import TEXT_DIM, small_generator, text_features
from tests.helpers.training import SHORT, SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONE = TimmBackbone("efficientnet_lite0", size=32)


def projected(text_dim: int = TEXT_DIM, **settings: object) -> ProjectedDiscriminator:
    torch.manual_seed(1)
    chosen: dict = {"resolutions": [4, 8, 16, 32], "final_dim": 8, "head_channels": 8, **settings}
    return ProjectedDiscriminator(chosen.pop("backbone", BACKBONE), text_dim=text_dim, **chosen)


def pictures(side: int = 16, count: int = 4, seed: int = 0) -> Tensor:
    """Smooth, each its own."""
    few = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(few, (side, side), mode="bilinear")


@pytest.mark.parametrize("resolution", [4, 8, 16, 32])
def test_every_resolution_gives_logits_and_gradients(resolution: int) -> None:
    discriminator = projected()
    images = pictures(resolution).requires_grad_()

    logits = discriminator(images, text_features(), Growth(resolution, 0.5))
    logits.square().sum().backward()

    assert logits.shape == (4, 5)
    assert logits.dtype == torch.float32
    assert images.grad is not None
    assert images.grad.flatten(1).any(1).all()
    heads = dict(discriminator.heads.named_parameters())
    assert all(p.grad is not None and p.grad.any() for p in heads.values())


def test_features_are_maps_of_each_side_and_a_vector() -> None:
    discriminator = projected(max_channels=30)

    seen = discriminator.extract_features(pictures(16), Growth(16))

    shapes = {side: tuple(m.shape) for side, m in seen.maps.items()}
    assert shapes == {
        16: (4, 16, 16, 16),
        8: (4, 24, 8, 8),
        4: (4, 30, 4, 4),
        2: (4, 30, 2, 2),
        1: (4, 30, 1, 1),
    }
    assert discriminator.map_channels == {16: 16, 8: 24, 4: 30, 2: 30, 1: 30}
    assert seen.final.shape == (4, 8)


def test_features_can_be_reused_for_several_captions() -> None:
    """Feature maps are not computed again for another caption."""
    discriminator, text = projected(), text_features()
    seen = discriminator.extract_features(pictures(16), Growth(16))
    convolved: list[nn.Module] = []
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, given, made: convolved.append(module))

    matched, mismatched = discriminator.logits(seen, text), discriminator.logits(seen, text.roll())

    assert convolved == []
    assert not torch.equal(matched, mismatched)


def test_only_the_heads_are_trained_and_saved() -> None:
    discriminator = projected()

    assert {name.split(".")[0] for name, _ in discriminator.named_parameters()} == {"heads", "to_final"}
    assert {name.split(".")[0] for name in discriminator.state_dict()} == {"heads", "to_final", "mixing"}
    mixing = {name for name in discriminator.state_dict() if name.startswith("mixing")}
    assert mixing == {f"mixing.channels_{i}" for i in range(5)} | {f"mixing.scales_{i}" for i in range(4)}
    discriminator(pictures(16), text_features(), Growth(16)).sum().backward()
    assert all(p.grad is None for p in BACKBONE._network.parameters())


def test_mixing_equals_the_paper_s_formula() -> None:
    mixing = FixedMixing(BACKBONE, max_channels=20, seed=3)
    maps = BACKBONE(pictures(32))

    mixed = mixing(maps)

    w = mixing.state_dict()
    expected = [torch.einsum("oi,bihw->bohw", w[f"channels_{i}"][:, :, 0, 0], x) for i, x in enumerate(maps)]
    for i in (3, 2, 1, 0):
        up = F.interpolate(expected[i + 1], scale_factor=2, mode="bilinear")
        expected[i] = (expected[i] + F.conv2d(up, w[f"scales_{i}"], padding=1)) / 2**0.5
    for mine, theirs in zip(mixed, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
        assert 0.3 < mine.square().mean().sqrt() < 3  # the inputs of the heads are of order one


def test_mixing_depends_on_its_seed_and_keeps_the_random_state() -> None:
    before = torch.random.get_rng_state()
    a, same, other = (FixedMixing(BACKBONE, 20, seed).state_dict() for seed in (0, 0, 1))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(a, same)
    assert not any(torch.equal(a[name], other[name]) for name in a)


def test_captions_matter_to_every_head() -> None:
    discriminator, text = projected(), text_features()
    seen = discriminator.extract_features(pictures(16), Growth(16))

    moved = discriminator.logits(seen, text) - discriminator.logits(seen, text.roll())

    assert (moved.abs().amax(0) > 1e-4).all()


def test_samples_are_independent() -> None:
    discriminator = projected().eval()
    images, text = pictures(16), text_features()

    together = discriminator(images, text, Growth(16))

    torch.testing.assert_close(
        discriminator(images[:1], text[:1], Growth(16)), together[:1], atol=1e-5, rtol=1e-4
    )


def test_heads_see_how_the_images_of_a_group_vary() -> None:
    """Images 0 and 2 are a group, and so are 1 and 3."""
    alone, grouped = projected().eval(), projected(minibatch_stddev=2).eval()
    images, text = pictures(), text_features()
    same = torch.stack([images[0], images[1], images[0], images[3]])

    assert torch.equal(alone(same, text, Growth(16))[0], alone(images, text, Growth(16))[0])
    varied, equal = grouped(images, text, Growth(16)), grouped(same, text, Growth(16))
    assert (varied[0] != equal[0]).all(), "every head"
    torch.testing.assert_close(varied[1], equal[1])


def test_spectral_norm_is_a_choice() -> None:
    """It keeps each convolution's gain at one, whatever the size of its weights."""
    text, images = text_features(), pictures(16)

    def grown(discriminator: ProjectedDiscriminator) -> float:
        """The factor by which logits grow when the convolutions' weights grow tenfold."""
        discriminator.eval()
        with torch.no_grad():
            before = discriminator(images, text, Growth(16))
            for parameter in discriminator.heads.parameters():
                if parameter.ndim == 4:
                    parameter.mul_(10)
            return float((discriminator(images, text, Growth(16)) / before).median())

    assert grown(projected()) == pytest.approx(1, rel=1e-3)
    assert grown(projected(spectral_norm=False)) > 10


def test_maps_of_one_side_each_have_a_head() -> None:
    """As a vision transformer gives them: one side at every depth."""

    class Flat(TimmBackbone):
        def _maps(self, network: torch.nn.Module, x: Tensor) -> list[Tensor]:
            return [F.adaptive_avg_pool2d(m, 4) for m in super()._maps(network, x)]

    discriminator = projected(backbone=Flat(size=32))
    seen = discriminator.extract_features(pictures(16), Growth(16))

    assert discriminator.logits(seen, text_features()).shape == (4, 5)
    assert discriminator.map_channels == {4: 256}
    assert seen.maps[4].shape == (4, 256, 4, 4)


def test_wrong_sizes_raise() -> None:
    discriminator = projected(resolutions=[8, 16])
    with pytest.raises(ValueError, match="images of 16 px were given at growth 8 px"):
        discriminator.extract_features(pictures(16), Growth(8))
    with pytest.raises(ValueError, match=r"resolution 32 is not one of \(8, 16\)"):
        discriminator.extract_features(pictures(32), Growth(32))
    with pytest.raises(ValueError, match=r"resolutions \[16, 8\] must be those of the run"):
        projected(resolutions=[16, 8])


def test_penalties_on_a_frozen_network_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.penalties: ProjectedDiscriminator .* set penalties to \[\]"):
        tiny_gan(discriminator=projected(16), penalties=[R1(1.0)])


# ------------------------------------------------------------------ in training


def eight() -> tuple[Tensor, TextFeatures]:
    """Four colours, each filled and as a square on white; 8 px; a word for colour and one for shape."""
    colours = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]], dtype=torch.float32)
    filled = colours[:, :, None, None].expand(4, 3, 8, 8)
    squares = F.pad(filled[:, :, 2:6, 2:6], [2] * 4, value=1.0)
    words = torch.eye(6)
    tokens = torch.stack([torch.stack([words[i % 4], words[4 + i // 4]]) for i in range(8)])
    text = TextFeatures(tokens, torch.ones(8, 2, dtype=torch.bool), tokens.sum(1))
    return torch.cat([filled, squares]), text


class Float64(TimmBackbone):
    """The same network in float64."""

    def _read(self) -> nn.Module:
        return super()._read().double()

    def __call__(self, images: Tensor) -> list[Tensor]:
        mean, std = (images.new_tensor(values)[:, None, None] for values in self._normalisation)
        shown = resized((as_shown(images) + 1) / 2, self.size)
        return self._maps(self._network, (shown - mean) / std)


@pytest.fixture
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_float64")
def test_generator_overfits_eight_images_against_it() -> None:
    """On its own and without penalties, the margin between real and fake images stays small.

    The game of the two networks magnifies rounding errors: in float32 the images differ between machines
    after 150 steps, in float64 AVX2 and AVX-512 give the same 16 digits after 250.
    """
    real, text = eight()
    real, text = real.double(), text.to(dtype=torch.float64)
    growth, adversarial, mismatch = Growth(8), Hinge(), MismatchedCaptions()
    backbone = Float64("efficientnet_lite0", size=16, maps=[0, 1])
    discriminator = projected(backbone=backbone, resolutions=[8], head_channels=32)
    generator = small_generator({4: 16, 8: 16}, style_dim=32, self_attention_at=[])
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=4e-3, betas=(0.0, 0.99))
        for network in (discriminator, generator)
    ]
    draw = torch.Generator().manual_seed(0)

    def fakes() -> Tensor:
        return generator(torch.randn(8, generator.latent_dim, generator=draw), text)

    def step(which: int, loss: Tensor) -> None:
        optimizers[which].zero_grad()
        loss.mean().backward()
        optimizers[which].step()

    margins = []
    for _ in range(200):
        seen = discriminator.extract_features(real, growth)
        real_logits = discriminator.logits(seen, text)
        fake_logits = discriminator(fakes().detach(), text, growth)
        loss = adversarial.discriminator(real_logits, fake_logits)
        step(0, loss + mismatch(discriminator, adversarial, LossInputs(real, seen, text, growth)))
        margins.append(float((real_logits - fake_logits).mean().detach()))
        step(1, adversarial.generator(discriminator(fakes(), text, growth)))

    with torch.no_grad():
        distances = (fakes().clamp(-1, 1)[:, None] - real).square().mean((2, 3, 4))  # (drawn, real)
    assert torch.equal(distances.argmin(1), torch.arange(8)), distances
    assert distances.diag().mean() < 0.1
    assert max(margins) < 3


def test_wrong_captions_get_lower_logits() -> None:
    real, text = eight()
    backbone = TimmBackbone("efficientnet_lite0", size=16, maps=[0, 1])
    discriminator = projected(backbone=backbone, resolutions=[8], head_channels=32)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2, betas=(0.0, 0.99))

    def judged() -> Tensor:
        """Logits by shift of the captions; the first is unshifted."""
        seen = discriminator.extract_features(real, Growth(8))
        return torch.stack([discriminator.logits(seen, text.roll(shift)) for shift in range(8)])

    for _ in range(120):
        optimizer.zero_grad()
        logits = judged()
        torch.stack([Hinge().discriminator(logits[0], wrong) for wrong in logits[1:]]).mean().backward()
        optimizer.step()

    with torch.no_grad():
        own, wrong = judged().mean(2).split([1, 7])
    assert (own > wrong.amax(0) + 0.1).all(), (own, wrong)


def full() -> dict:
    torch.manual_seed(2)
    return {
        "discriminator": projected(16, resolutions=[8, 16, 32]),
        "adversarial": Hinge(),
        "losses": [MismatchedCaptions(), ImageTextContrastive(image_dim=8, text_dim=16, embed_dim=4)],
    }


def test_a_run_grows_with_it_and_resumes_to_the_bit(tmp_path: Path) -> None:
    """The vectors of spectral norm are state that a resume restores."""
    whole, stopped, resumed = (tiny_gan(**full()) for _ in range(3))
    file = tmp_path / "stopped.ckpt"
    growth = [ProgressiveGrowing(list(SHORT), reset_optimizer_state=True) for _ in range(3)]
    train(whole, 56, growth[:1], stages=SHORT)
    train(stopped, 24, [growth[1], SaveAt({24: file})], stages=SHORT)
    train(resumed, 56, growth[2:], ckpt_path=file, stages=SHORT)

    assert whole.growth.resolution == 32
    assert_same(weights_of(whole), weights_of(resumed))
    weight = "heads.0.enter.parametrizations.weight.original"
    assert not torch.equal(
        whole.discriminator.get_parameter(weight), stopped.discriminator.get_parameter(weight)
    )
    names = set(torch.load(file, weights_only=True)["state_dict"])
    assert not any("backbone" in name or "blocks" in name.split("discriminator")[-1] for name in names)
