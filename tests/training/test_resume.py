"""A run that is stopped and resumed is, to the bit, the run that was never stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.models.augment import DiffAugment
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.schedules import Linear
from imagen_pl.types import CaptionedBatch
from tests.helpers.fakes import MeanColour, TinyBackbone
from tests.helpers.tasks import tiny_losses
from tests.helpers.training import (
    STAGES,
    AtEachBatch,
    SaveAt,
    Speckled,
    adam,
    assert_same,
    batches_until,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    train,
)

END = 240
# What happens at the clock where a run is stopped; epochs end at 80, 160 and 240.
STOPS = {
    "before the first growth": 40,
    "at a stage's border": 64,
    "in the middle of a fade": 96,
    "as a fade ends": 128,
    "at the border of a stage and of an epoch": 160,
    "in the middle of the second fade": 184,
}


@dataclass
class Trace:
    """All inputs and random numbers of a run, by the clock at each batch's end."""

    by_clock: dict[int, list[Any]] = field(default_factory=dict)
    drawn: list[Tensor] = field(default_factory=list)

    def watch(self, gan: TextToImageGAN) -> Callback:
        gan.generator.register_forward_pre_hook(lambda _, args: self.drawn.append(args[0]))
        assert gan.augment is not None
        gan.augment.register_forward_hook(self._keep_output)
        return AtEachBatch(after=self._note)

    def _keep_output(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.drawn.append(output.detach().clone())

    def _note(self, gan: TextToImageGAN, batch: CaptionedBatch) -> None:
        rates = [group["lr"] for optimizer in gan.trainer.optimizers for group in optimizer.param_groups]
        assert isinstance(gan.augment, DiffAugment)
        self.by_clock[gan.images_seen] = [
            *(
                batch.indices.tolist(),
                batch.captions,
                batch.images,
                gan.growth,
                gan.run_state.stage,
                rates,
            ),
            *(gan.augment.probability.clone(), torch.get_rng_state(), self.drawn.copy()),
        ]
        self.drawn.clear()


def everything(**settings: Any) -> TextToImageGAN:
    """Everything that draws random numbers or has state, switched on."""
    torch.manual_seed(0)  # of the contrastive term's weights
    return tiny_gan(
        generator={
            "noise": True,
            "style_mixing": 0.5,
            "text_attention_at": [8],
            "self_attention_at": [8],
            "mean_decay": 0.9,
            "text_adapter": TextAdapter(16, hidden_dim=8, attention_heads=2),
            "prior": ImagePrior(TinyBackbone(), 32, text_dim=16, seen_dim=4, thumbnail_dim=4),
        },
        discriminator={
            "heads_at": [8, 16],
            "minibatch_stddev": 4,
            "text_adapter": TextAdapter(16, hidden_dim=8),
        },
        adversarial=Relativistic(),
        penalties=[R1(0.5, every=2), R2(0.5, every=3)],
        losses=tiny_losses(),
        augment=DiffAugment(probability=0.3, target=0.6, adapt_kimg=1.0),
        learning_rate_schedule=Linear(1.0, 0.1, kimg=0.2),
        gradient_clip=10.0,
        generator_optimizer=adam(),
        discriminator_optimizer=adam(),
        **settings,
    )


def data(**settings: Any) -> Any:
    made = tiny_data(caption_dropout=0.2, horizontal_flip=True, **settings)
    made.source = Speckled(24, side=32, captions=lambda i: [f"number {i}", f"no. {i}"])
    return made


def growing() -> ProgressiveGrowing:
    return ProgressiveGrowing(list(STAGES), reset_optimizer_state=True)


def state(gan: TextToImageGAN) -> dict[str, Any]:
    """The final state of a run."""
    growing = [c for c in gan.trainer.callbacks if isinstance(c, ProgressiveGrowing)]  # type: ignore[attr-defined]
    return {
        "weights": gan.state_dict(),  # the average and the augmentation's probability among them
        "optimizers": [optimizer.state_dict() for optimizer in gan.trainer.optimizers],
        "clock": (gan.images_seen, gan.growth, gan.run_state.stage, growing[0].state_dict()),
    }


@dataclass
class Whole:
    """The run that was not stopped, and checkpoints along its way."""

    trace: Trace
    state: dict[str, Any]
    paths: dict[int, Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {clock: folder / f"{clock}.ckpt" for clock in STOPS.values()}
    gan, trace = everything(), Trace()
    train(gan, END, [growing(), trace.watch(gan), SaveAt(paths)], data())
    return Whole(trace, state(gan), paths)


def test_compared_run_covers_growth_fades_and_augmentation(whole: Whole) -> None:
    clocks = sorted(whole.trace.by_clock)
    assert clocks[-1] == END
    assert len(clocks) == batches_until(END)
    fades = [whole.trace.by_clock[clock][3].fade for clock in clocks]
    assert sum(0 < fade < 1 for fade in fades) >= 10
    probabilities = {float(whole.trace.by_clock[clock][6]) for clock in clocks}
    assert len(probabilities) > 5
    assert any("" in whole.trace.by_clock[clock][1] for clock in clocks)  # dropped captions


@pytest.mark.parametrize("clock", STOPS.values(), ids=STOPS.keys())
def test_resumed_equals_uninterrupted(whole: Whole, clock: int) -> None:
    torch.manual_seed(clock)  # earlier random numbers must not matter
    gan, trace = everything(), Trace()
    with torch.no_grad():
        for parameter in gan.parameters():
            parameter.add_(1)  # a resume must not use the initial weights
    train(gan, END, [growing(), trace.watch(gan)], data(), whole.paths[clock])
    rest = {c: seen for c, seen in whole.trace.by_clock.items() if c > clock}
    assert_same(trace.by_clock, rest)
    assert_same(state(gan), whole.state)


@pytest.mark.parametrize("clock", [96, 160])
def test_run_stopped_and_resumed_twice_equals_uninterrupted(whole: Whole, clock: int, tmp_path: Path) -> None:
    """Stopped by a limit and resumed from last.ckpt twice, with validation and grids between."""
    for until in (clock, clock + 16, END):
        gan = everything(metrics=[MeanColour()])
        last = tmp_path / "checkpoints" / "last.ckpt"
        kept = [growing(), KeepCheckpoints(monitor="val/mean_colour", every_kimg=0.05)]
        trainer = tiny_trainer(until, kept, enable_checkpointing=True, default_root_dir=str(tmp_path))
        trainer.fit(gan, data(), ckpt_path=last if last.exists() else None)
        assert gan.images_seen == until
    assert_same(state(gan), whole.state)


def test_a_resume_takes_the_new_learning_rate(whole: Whole) -> None:
    gan = everything()
    gan.generator_optimizer, gan.learning_rate_schedule = adam(5e-4), None
    rates: set[tuple[float, ...]] = set()
    note = AtEachBatch(
        after=lambda s, _: rates.add(tuple(o.param_groups[0]["lr"] for o in s.trainer.optimizers))
    )
    train(gan, 120, [growing(), note], data(), whole.paths[96])
    assert rates == {(1e-3, 5e-4)}
