"""The GAN of transformers: several images of each sample, rotary positions, its sizes."""

from __future__ import annotations

import pytest
import torch

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.gradient_penalties import R1, FiniteDifferenceR1, FiniteDifferenceR2
from imagen_pl.losses.image_matching import PixelMatching
from imagen_pl.losses.self_supervised import Rotation
from imagen_pl.models.augment import color
from imagen_pl.models.discriminators.transformer import TransformerDiscriminator
from imagen_pl.models.generators.transformer import TransformerGenerator
from imagen_pl.models.layers.transformer import RMSNorm, RotaryPositions, SwiGLU, TokenAttention
from imagen_pl.schedules import Stage
from imagen_pl.types import EncodedBatch
from tests.helpers.fakes import TinyText
from tests.helpers.networks import TEXT_DIM, awaken, text_features
from tests.helpers.training import adam, tiny_data, train

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = [0.8, 0.5, 0.0]


def generator(text_dim: int = TEXT_DIM, **settings: object) -> TransformerGenerator:
    torch.manual_seed(0)
    chosen: dict = {"depth": 3, "heads": 2, "latent_dim": 5, "noise": NOISE, **settings}
    return TransformerGenerator(16, 4, 16, text_dim=text_dim, **chosen)


def discriminator(text_dim: int = TEXT_DIM, images: int = 3) -> TransformerDiscriminator:
    torch.manual_seed(1)
    return TransformerDiscriminator(16, 4, 16, 2, 2, text_dim, images)


def batch(images: torch.Tensor) -> EncodedBatch:
    return EncodedBatch(images, text_features(len(images)), [""] * len(images))


def test_training_gives_all_images_with_less_and_less_noise(latents: torch.Tensor) -> None:
    network = generator()
    text, images = text_features(), network.images(latents, text_features())
    assert len(images) == len(NOISE)

    joined = network.for_batch(latents, batch(torch.zeros(4, 3, 16, 16)))

    assert joined.shape == (4, 9, 16, 16)
    assert torch.equal(joined[:, -3:], images[-1])
    assert torch.equal(network(latents, text), images[-1])
    first = joined[:, :3] - (1 - NOISE[0]) * images[0]
    assert first.std().item() == pytest.approx(NOISE[0], rel=0.05)


def test_real_images_get_the_same_noise_and_form() -> None:
    network = generator()
    real = torch.rand(8, 3, 16, 16) * 2 - 1
    joined = network.like_generated(batch(real))
    assert joined.shape == (8, 9, 16, 16)
    assert torch.equal(joined[:, -3:], real)
    for level, share in enumerate(NOISE[:-1]):
        noise = joined[:, 3 * level : 3 * level + 3] - (1 - share) * real
        assert noise.std().item() == pytest.approx(share, rel=0.05)
        assert noise.mean().abs().item() < 0.05


def test_scoring_and_drawing_see_the_last_image_alone(latents: torch.Tensor) -> None:
    network = generator().eval()
    drawn = network.for_batch(latents, batch(torch.zeros(4, 3, 16, 16)))
    assert torch.equal(drawn, network(latents, text_features()))
    real = torch.rand(2, 3, 16, 16)
    assert network.like_generated(batch(real)) is real


def test_early_blocks_learn_from_their_own_image(latents: torch.Tensor) -> None:
    """The first block gets a gradient through the first image alone, without the later blocks."""
    network = generator()
    awaken(network)
    network.images(latents, text_features())[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.layers[0].parameters())
    assert all(p.grad is None or not p.grad.any() for p in network.layers[1].parameters())


class Shown(PixelMatching):
    """Keeps what the loss terms are given."""

    seen: LossInputs

    def forward(self, discriminator, adversarial, inputs):  # type: ignore[no-untyped-def]
        Shown.seen = inputs
        return super().forward(discriminator, adversarial, inputs)


def test_it_trains_with_finite_differences_and_loss_terms_get_plain_images() -> None:
    gan = TextToImageGAN(
        generator(16),
        discriminator(16),
        TinyText(),
        Relativistic(),
        adam(),
        adam(),
        penalties=[FiniteDifferenceR1(0.1), FiniteDifferenceR2(0.1)],
        losses=[Shown(generator_weight=1.0)],
    )
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    train(gan, 16, data=tiny_data(resolution=16, batch_size=8), stages=[Stage(16, batch_size=8)])
    after = gan.state_dict()
    assert Shown.seen.images.shape == (8, 3, 16, 16)
    assert Shown.seen.real_images is not None
    assert Shown.seen.real_images.shape == (8, 3, 16, 16)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    for part in ("generator.", "discriminator.", "ema."):
        assert any(name.startswith(part) for name in changed)
    assert gan.sample(["a", "b"], 0).shape == (2, 3, 16, 16)


def test_networks_must_agree_on_the_number_of_images() -> None:
    with pytest.raises(
        UserError, match="gives 3 images of each sample, but TransformerDiscriminator reads 1"
    ):
        TextToImageGAN(generator(16), discriminator(16, 1), TinyText(), Relativistic(), adam(), adam())


def test_losses_that_make_images_of_their_own_are_refused() -> None:
    with pytest.raises(UserError, match="Rotation gives the discriminator single images"):
        TextToImageGAN(
            generator(16),
            discriminator(16),
            TinyText(),
            Relativistic(),
            adam(),
            adam(),
            losses=[Rotation(16)],
        )


def test_joined_images_change_colours_as_each_would_alone() -> None:
    images, others = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8) ** 3
    source = torch.Generator()
    alone = [color(each, source.manual_seed(0)) for each in (images, others)]
    joined = color(torch.cat([images, others], 1), source.manual_seed(0))
    torch.testing.assert_close(joined, torch.cat(alone, 1))


def test_rotary_products_depend_on_the_distance_alone() -> None:
    """<R(p) q, R(p') k> is a function of p' - p (arXiv:2104.09864, eq. 16)."""
    torch.manual_seed(0)
    positions = RotaryPositions(5, 5, 8).double()
    q, k = torch.randn(2, 8).double()
    turned = [positions(x.expand(1, 1, 25, 8))[0, 0].unflatten(0, (5, 5)) for x in (q, k)]
    products = torch.einsum("abd,xyd->abxy", *turned)
    for row, column in ((0, 1), (2, 0), (1, 1)):
        found = torch.stack(
            [products[a, b, a + row, b + column] for a in range(5 - row) for b in range(5 - column)]
        )
        torch.testing.assert_close(found, found[:1].expand_as(found))
    assert (products[0, 0, 0, 0] - products[0, 0, 0, 1]).abs() > 1e-3


def test_attention_equals_the_fused_kernel() -> None:
    torch.manual_seed(0)
    layer = TokenAttention(8, 2, 17, 17)  # 289 tokens: fused
    x = torch.randn(2, 289, 8)
    fused = layer(x)
    from imagen_pl.models.layers import transformer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "_MAX_TOKENS_UNFUSED", 1000)
        torch.testing.assert_close(layer(x), fused, atol=1e-5, rtol=1e-4)


def test_gradient_penalties_work_with_many_tokens() -> None:
    judge = TransformerDiscriminator(34, 2, 8, 1, 2, TEXT_DIM, images=1)  # 289 tokens
    penalty = R1(1.0)(judge, torch.randn(2, 3, 34, 34), torch.randn(2, 3, 34, 34), text_features(2))
    penalty.sum().backward()
    assert judge.embed.weight.grad is not None
    assert judge.embed.weight.grad.any()


def test_norm_and_gate_equal_their_definitions() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6)
    norm = RMSNorm(6)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    gate = SwiGLU(6)
    first, second = gate.gate_and_value.weight.chunk(2)
    expected = (torch.nn.functional.silu(x @ first.T) * (x @ second.T)) @ gate.out.weight.T
    torch.testing.assert_close(gate(x), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 5}, "patch 5 must divide the resolution, 16"),
        ({"width": 12, "heads": 2}, "width 12 must be a multiple of 4 times its 2 heads"),
        ({"depth": 4}, "depth 4 must be a multiple of its 3 images"),
        ({"noise": [0.5]}, "the last of them 0"),
        ({"noise": []}, "the last of them 0"),
    ],
)
def test_wrong_sizes_are_named(settings: dict, message: str) -> None:
    chosen = {"patch": 4, "width": 16, "depth": 3, "heads": 2, "noise": NOISE, **settings}
    with pytest.raises(ValueError, match=message):
        TransformerGenerator(16, **chosen)
