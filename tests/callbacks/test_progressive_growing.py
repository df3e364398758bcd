"""Growth: networks, real images, loader, learning rates and penalties follow the stages together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.gradient_penalties import Images, LogitFn, Penalty, PerResolution
from imagen_pl.models.augment import Augment
from imagen_pl.models.layers.resampling import downsample, upsample
from imagen_pl.schedules import Linear, Stage, position
from imagen_pl.types import CaptionedBatch, Growth, TextFeatures
from tests.helpers.training import (
    STAGES,
    AtEachBatch,
    Remember,
    batches_until,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    train,
    weights_of,
)


class Watcher(Augment):
    """Changes nothing, and records the discriminator's input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor, seed: int | None = None) -> Tensor:
        self.seen.append(images.detach().clone())
        return images


class Ones(Penalty):
    """1 for each sample, with a gradient of zero: the logged value is its weight."""

    name = "ones"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> Tensor:
        return logit_fn(real, text).mean(1) * 0 + 1


def test_networks_data_and_metrics_grow_together() -> None:
    """Resolution, batch size, both networks and the faded real images, at every batch."""
    watcher = Watcher()
    gan = tiny_gan(augment=watcher)
    drawn: list[Growth] = []
    gan.generator.register_forward_pre_hook(lambda _, args: drawn.append(args[2]))
    clocks: list[int] = []

    def check(gan: TextToImageGAN, batch: CaptionedBatch) -> None:
        here = position(STAGES, gan.images_seen - len(batch))
        clocks.append(gan.images_seen)
        side = here.growth.resolution
        assert batch.images.shape == (here.stage.batch_size, 3, side, side)
        assert gan.growth == here.growth
        assert drawn == [here.growth] * 2  # for the discriminator step and for the generator step
        real, fake, fake_again = watcher.seen
        assert real.shape == fake.shape == fake_again.shape == batch.images.shape
        whole = batch.images.float() / 127.5 - 1
        blurred = upsample(downsample(whole))
        torch.testing.assert_close(real, blurred + here.growth.fade * (whole - blurred), atol=1e-6, rtol=0)
        if here.growth.fade < 1:
            assert (real - whole).abs().max() > 0.01
        drawn.clear()
        watcher.seen.clear()

    train(gan, 240, [AtEachBatch(after=check)])
    assert len(clocks) == batches_until(240)
    assert clocks[-1] == 240


def test_inactive_blocks_do_not_change_and_active_ones_train() -> None:
    gan = tiny_gan()
    before = weights_of(gan)
    trainer = train(gan, 96)  # into the fade of 16 px
    after = weights_of(gan)
    for network, optimizer in zip(("discriminator", "generator"), trainer.optimizers, strict=True):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {f"{network}.grown.{r}" for r in (8, 16)} <= {".".join(n.split(".")[:3]) for n in moved}
        assert not any(name.startswith(f"{network}.grown.32") for name in moved)
        unused = getattr(gan, network).blocks()[32].parameters()
        assert not any(parameter in optimizer.state for parameter in unused)
    moved_average = {n.split(".")[3] for n in before if n.startswith("ema.generator.grown")} & {
        n.split(".")[3] for n in moved if n.startswith("ema.generator.grown")
    }
    assert moved_average == {"8", "16"}


def test_stages_set_learning_rates_and_penalty_weights() -> None:
    stages = [
        Stage(8, kimg=0.032, batch_size=8, generator_lr=0.002, discriminator_lr=0.004, penalty_weight=7.0),
        Stage(16, kimg=0.032, batch_size=8, penalty_weight=0.0),
        Stage(32, kimg=1.0, batch_size=4, generator_lr=0.003),
    ]
    logged = Remember()
    gan = tiny_gan(penalties=[Ones(PerResolution(8, 1.0, 32, 16.0), every=2)])
    train(gan, 96, stages=stages, logger=logged, log_every_n_steps=1)
    # The optimizers' own rates are 0.001.
    assert logged.column("train/g_lr") == {
        c: 0.002 if c <= 32 else 0.001 if c <= 64 else 0.003 for c in range(8, 65, 8)
    } | dict.fromkeys(range(68, 97, 4), 0.003)
    assert {c: v for c, v in logged.column("train/d_lr").items() if c in (32, 40, 96)} == {
        32: 0.004,
        40: 0.001,
        96: 0.001,
    }
    # Applied at every second batch, so twice as strong; the weight's own power law where the stage has none.
    weights = logged.column("train/d_ones")
    assert [weights[c] for c in (8, 32, 40, 64, 96)] == pytest.approx([14, 14, 0, 0, 32])


def test_learning_rate_schedule_multiplies_the_stages_rates() -> None:
    stages = [Stage(8, kimg=0.04, batch_size=8), Stage(16, kimg=1, batch_size=8, generator_lr=0.01)]
    logged = Remember()
    gan = tiny_gan(learning_rate_schedule=Linear(1.0, 0.0, kimg=0.08))
    train(gan, 80, stages=stages, logger=logged, log_every_n_steps=1)
    factor = [1 - c / 80 for c in range(0, 80, 8)]
    assert list(logged.column("train/d_lr").values()) == pytest.approx([0.001 * f for f in factor])
    own = [0.001] * 5 + [0.01] * 5
    assert list(logged.column("train/g_lr").values()) == pytest.approx(
        [r * f for r, f in zip(own, factor, strict=True)]
    )


def moments(gan: TextToImageGAN) -> list[set[int]]:
    """For each optimizer, the resolutions of blocks that have state; 0 stands for the shared parameters."""
    found = []
    for network, optimizer in zip((gan.discriminator, gan.generator), gan.trainer.optimizers, strict=True):
        blocks: dict[int, nn.Module] = network.blocks()  # type: ignore[operator]
        owner: dict[Tensor, int] = {
            p: resolution for resolution, block in blocks.items() for p in block.parameters()
        }
        found.append({owner.get(parameter, 0) for parameter in optimizer.state})
    return found


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("fade_kimg", [0.032, 0.064], ids=["fades, then settles", "fades all the stage"])
def test_optimizer_state_of_new_blocks_is_reset_when_their_fade_ends(reset: bool, fade_kimg: float) -> None:
    stages = [
        Stage(8, kimg=0.032, batch_size=8),
        Stage(16, kimg=0.064, batch_size=8, fade_kimg=fade_kimg),
        Stage(32, kimg=1, batch_size=4, fade_kimg=0.016),
    ]
    seen: dict[int, list[set[int]]] = {}
    look = AtEachBatch(before=lambda gan, _: seen.update({gan.images_seen: moments(gan)}))
    train(tiny_gan(), 120, [ProgressiveGrowing(stages, reset_optimizer_state=reset), look], stages=stages)
    first, second = 32 + round(fade_kimg * 1000), 96 + 16
    for clock, have in seen.items():
        expected = {0, 8} if clock else set()
        if clock > 32:
            expected |= {16} - ({16} if reset and clock == first else set())
        if clock > 96:
            expected |= {32} - ({32} if reset and clock == second else set())
        assert have == [expected, expected], clock


def test_all_optimizer_state_is_reset_when_a_fade_begins_and_when_it_ends() -> None:
    """As in ProGAN's code."""
    stages = [
        Stage(8, kimg=0.032, batch_size=8),
        Stage(16, kimg=0.064, batch_size=8, fade_kimg=0.032),
    ]
    seen: dict[int, list[set[int]]] = {}
    look = AtEachBatch(before=lambda gan, _: seen.update({gan.images_seen: moments(gan)}))
    train(tiny_gan(), 120, [ProgressiveGrowing(stages, reset_optimizer_state="all"), look], stages=stages)

    assert [clock for clock, have in seen.items() if have == [set(), set()]] == [0, 32, 64]
    assert seen[40] == [{0, 8, 16}, {0, 8, 16}]


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (
            [Stage(8, kimg=1, batch_size=4), Stage(64, kimg=1, batch_size=4)],
            {},
            r"stages\[1\].resolution 64 is not a resolution of the generator: \[8, 16, 32\]; "
            r"add it to model.generator.init_args.channels",
        ),
        (
            [Stage(8, kimg=1, batch_size=6)],
            {"accumulate": 4},
            r"stages\[0\].batch_size 6 is not divisible by 1 processes x 4 accumulated parts",
        ),
    ],
)
def test_invalid_stages_raise_before_the_first_batch(
    stages: list[Stage], settings: dict[str, Any], message: str
) -> None:
    gan = tiny_gan(**settings)
    with pytest.raises(UserError, match=message):
        train(gan, 8, stages=stages)
    assert gan.images_seen == 0


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is empty"),
        ([Stage(12, kimg=1, batch_size=4)], r"stages\[0\].resolution 12 is not a power of two"),
        (
            [Stage(16, kimg=1, batch_size=4), Stage(8, kimg=1, batch_size=4)],
            r"stages\[1\].resolution 8 does not grow on stages\[0\]'s 16",
        ),
        ([Stage(8, kimg=1, batch_size=1)], r"stages\[0\].batch_size 1 is too small"),
        ([Stage(8, kimg=1, batch_size=4, fade_kimg=2)], r"stages\[0\].fade_kimg 2 is not between 0 and"),
    ],
)
def test_invalid_stages_raise(stages: list[Stage], message: str) -> None:
    with pytest.raises(UserError, match=f"ProgressiveGrowing: {message}"):
        ProgressiveGrowing(stages)


def test_kimg_scale_stretches_stages_and_fades() -> None:
    def half(kimg: float | None) -> float | None:
        return None if kimg is None else kimg / 2

    grow = ProgressiveGrowing(list(STAGES), kimg_scale=0.5)
    assert [(s.kimg, s.fade_kimg, s.batch_size) for s in grow.stages] == [
        (half(s.kimg), half(s.fade_kimg), s.batch_size) for s in STAGES
    ]
    with pytest.raises(UserError, match="kimg_scale 0 must be more than 0"):
        ProgressiveGrowing(list(STAGES), kimg_scale=0)


def test_without_growth_the_whole_networks_train_at_the_datas_resolution() -> None:
    gan = tiny_gan()
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    shapes: list[torch.Size] = []
    trainer.callbacks.append(AtEachBatch(after=lambda _, batch: shapes.append(batch.images.shape)))  # type: ignore[attr-defined]
    trainer.fit(gan, tiny_data(resolution=32, batch_size=4))
    assert shapes == [(4, 3, 32, 32)] * 2
    assert gan.images_seen == 8
    assert (gan.growth, gan.run_state.stage) == (Growth(32), None)
    assert tiny_trainer(8).max_steps == 2
