"""A whole training in a second: tiny networks, pictures in memory, and callbacks that record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.schedules import Stage, batches
from imagen_pl.training.atomic_checkpoints import AtomicCheckpointIO
from tests.helpers.fakes import TinyText
from tests.helpers.image_files import Solid, encoded, noise

# 8 px to 64 images; 16 px to 160, fading until 128; then 32 px, fading until 208.
STAGES = (
    Stage(8, kimg=0.064, batch_size=8),
    Stage(16, kimg=0.096, batch_size=8, fade_kimg=0.064),
    Stage(32, kimg=1.0, batch_size=4, fade_kimg=0.048),
)
# The same in a fifth of the images: 8 px to 16, 16 px to 48, fading until 32.
SHORT = (
    Stage(8, kimg=0.016, batch_size=8),
    Stage(16, kimg=0.032, batch_size=8, fade_kimg=0.016),
    Stage(32, kimg=1.0, batch_size=4, fade_kimg=0.008),
)


class Speckled(Solid):
    """Images of noise, each its own: fine detail that a fade takes away."""

    def image(self, row: Row) -> bytes:
        return encoded(noise(self.side, self.side, seed=row.place))


def tiny_data(count: int = 24, **settings: Any) -> CaptionedImages:
    """No validation, no workers, epochs of 80 images, unless asked for."""
    defaults: dict[str, Any] = {"num_workers": 0, "epoch_kimg": 0.08, "val_fraction": 0}
    return CaptionedImages(Speckled(count, side=32), **{**defaults, **settings})


def sgd(lr: float = 0.01) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=lr)


def adam(lr: float = 1e-3) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.Adam, lr=lr, betas=(0.0, 0.99))


def tiny_gan(
    generator: dict[str, Any] | Generator | None = None,
    discriminator: dict[str, Any] | Discriminator | None = None,
    **settings: Any,
) -> TextToImageGAN:
    """8 to 32 px, 4 to 8 maps; the same initial weights each time. Loss terms are those given."""
    channels = {8: 8, 16: 4, 32: 4}
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "text_encoder": TinyText(),
        "adversarial": NonSaturating(),
        "generator_optimizer": adam(),
        "discriminator_optimizer": adam(),
        "ema_halflife_kimg": 0.1,
    }
    if not isinstance(generator, Generator):
        generator = StyleGenerator(channels, text_dim=16, latent_dim=8, style_dim=8, **generator or {})
    if not isinstance(discriminator, Discriminator):
        discriminator = MultiscaleDiscriminator(channels, text_dim=16, final_dim=8, **discriminator or {})
    return TextToImageGAN(generator=generator, discriminator=discriminator, **{**defaults, **settings})


def batches_until(images: int, stages: Sequence[Stage] = STAGES, start: int = 0) -> int:
    return len(list(batches(stages, start, images)))


def tiny_trainer(
    images: int,
    callbacks: Sequence[Callback] = (),
    stages: Sequence[Stage] = STAGES,
    **settings: Any,
) -> Trainer:
    """Trains on the CPU until so many images are seen; ProgressiveGrowing is added if it is not there.

    Lightning counts every optimizer's step, so `max_steps` is two a batch.
    """
    torch.set_num_threads(1)
    callbacks = list(callbacks)
    if not any(isinstance(c, ProgressiveGrowing) for c in callbacks):
        callbacks.insert(0, ProgressiveGrowing(list(stages)))
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "max_epochs": -1,
        "max_steps": 2 * batches_until(images, stages),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "plugins": [AtomicCheckpointIO()],
    }
    return Trainer(callbacks=callbacks, **{**defaults, **settings})


def train(
    gan: TextToImageGAN,
    images: int,
    callbacks: Sequence[Callback] = (),
    data: CaptionedImages | None = None,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> Trainer:
    trainer = tiny_trainer(images, callbacks, **settings)
    trainer.fit(gan, data or tiny_data(), ckpt_path=ckpt_path)
    return trainer


class AtEachBatch(Callback):
    """Calls `look(module, batch)` before or after every batch."""

    def __init__(
        self,
        before: Callable[[TextToImageGAN, Any], None] | None = None,
        after: Callable[[TextToImageGAN, Any], None] | None = None,
    ) -> None:
        self.before, self.after = before, after

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, i: int) -> None:
        if self.before is not None:
            assert isinstance(pl_module, TextToImageGAN)
            self.before(pl_module, batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        if self.after is not None:
            assert isinstance(pl_module, TextToImageGAN)
            self.after(pl_module, batch)


class SaveAt(AtEachBatch):
    """Writes a checkpoint after the batch that ends at a clock, as KeepCheckpoints does while it trains."""

    def __init__(self, paths: dict[int, Path]) -> None:
        super().__init__(after=self._save)
        self.paths = paths

    def _save(self, gan: TextToImageGAN, batch: Any) -> None:
        if gan.images_seen in self.paths:
            gan.trainer.save_checkpoint(self.paths[gan.images_seen])


class Remember(Logger):
    """Keeps what is logged: `rows` of (step, numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = "remember"
    version = "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of them."""

    def column(self, name: str) -> dict[int, float]:
        """One number by step."""
        found: dict[int, float] = {}
        for step, numbers in self.rows:
            if name in numbers:
                assert step is not None, name
                found[step] = numbers[name]
        return found


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of its state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(a: Any, b: Any) -> None:
    """Compare nested values; tensors must be equal to the bit."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


class StepGradients(Callback):
    """Keeps every gradient right before an optimizer's step: (clock, "d" or "g", gradients by name)."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, str, dict[str, Tensor]]] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, TextToImageGAN)
        which = "d" if optimizer is trainer.optimizers[0] else "g"
        grads = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        self.steps.append((pl_module.images_seen, which, grads))
