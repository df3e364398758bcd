"""How a run starts and resumes: preparation before the first batch, earlier weights, and checkpoint state."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.errors import UserError
from imagen_pl.losses.base import LossTerms
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.kernel_ridge import KernelRidge
from imagen_pl.models.pretrained.backbones import frozen_names
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.schedules import RunState
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.training.gradient_exchange import exchange_own_gradients
from imagen_pl.training.kernel_ridge_fit import exclude_from_ddp, kernel_ridge_modules
from imagen_pl.training.latent_preparation import cache_latents
from imagen_pl.training.preparation import Preparation
from imagen_pl.training.seeded_steps import SeededSteps
from imagen_pl.training.validation_metrics import Validation
from imagen_pl.training.warm_start import initialise
from imagen_pl.types import Growth

log = logging.getLogger(__name__)


class StartAndResume(SeededSteps):
    """Lightning's hooks before the first batch, and those that save and load a checkpoint.

    Args:
        run_state: the run's clock, growth and stage.
        accumulate: micro-batches into which a batch is split, to save memory.
        gradient_clip: largest norm of each optimizer's gradient; None does not clip.

    Attributes:
        example_captions: captions of the training set; a checkpoint keeps them for guidance when sampling.
        earlier_teacher_networks: frozen networks that were used to train the model whose weights this one
            starts from.
        alpha: whether the images have alpha, as the data says; a checkpoint keeps it.

    Attributes, set by the subclass:
        generator, discriminator: the networks.
        ema: the generator's moving average.
        text_encoder: encodes the captions.
        losses: the loss terms.
        validation: the metrics.
    """

    discriminator: Discriminator
    ema: GeneratorEMA
    text_encoder: TextEncoder
    losses: LossTerms
    validation: Validation

    def __init__(self, run_state: RunState, accumulate: int = 1, gradient_clip: float | None = None) -> None:
        super().__init__(run_state, accumulate, gradient_clip)
        self.example_captions: list[str] = []
        self.earlier_teacher_networks: list[str] = []
        self.alpha = False

    def setup(self, stage: str) -> None:
        """Prepare the metrics, and share the run's state with the data module."""
        self.validation.prepare(self.trainer, self.teacher_networks())
        exclude_from_ddp(self)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionedImages):
            self.alpha = data.val_processing.alpha
            check_shape(self.generator, data.val_processing)
            data.follow(self.run_state)
            if stage == "fit":
                for term in self.losses:
                    term.prepare(data.some_captions)
                self.example_captions = data.example_captions()
                self._check_groups(data.pictures_per_caption)
        if stage != "fit":
            self._preparation().run()

    def _check_groups(self, pictures: int) -> None:
        """Warn where a loss or the discriminator cannot compare the pictures of a caption."""
        for term in self.losses:
            if term.needs_groups and pictures == 1:
                log.warning(
                    "%s has little effect: it compares the pictures of a caption. Set "
                    "data.pictures_per_caption to 4, for example", type(term).__name__,
                )  # fmt: skip
        groups = {getattr(part, "minibatch_stddev", 0) for part in self.discriminator.modules()} - {0}
        if pictures > 1 and not groups:
            log.warning(
                "data.pictures_per_caption %d has little effect: set minibatch_stddev of the discriminator "
                "to %d", pictures, pictures,
            )  # fmt: skip
        if pictures > 1 and any(pictures % group for group in groups):
            log.warning(
                "minibatch_stddev %s of the discriminator should divide data.pictures_per_caption %d: its "
                "groups mix captions", ", ".join(map(str, sorted(groups))), pictures,
            )  # fmt: skip

    def on_train_start(self) -> None:
        exchange_own_gradients(self.trainer.strategy)

    def on_fit_start(self) -> None:
        """Encode the captions; before a new training, load the weights of `init_from` and fit the prior."""
        if self.images_seen:
            self._preparation().run()
            self._cache_latents()
            return
        fitted: list[list[KernelRidge]] = [[regression] for regression in kernel_ridge_modules(self.losses)]
        if self.generator.init_from is not None:
            self._start_from(self.generator.init_from)
        elif priors := kernel_ridge_modules(self.generator, self.ema):
            fitted.insert(0, priors)
        self._preparation().run(fitted)
        self._cache_latents()

    def _cache_latents(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        cache_latents(self.trainer, self.generator, data, self.run_state)

    def _preparation(self) -> Preparation:
        data = getattr(self.trainer, "datamodule", None)
        return Preparation(self.trainer, self.text_encoder, data, self.run_state)

    def _start_from(self, path: str) -> None:
        earlier = initialise(self.generator, self.discriminator, path)
        self.ema.generator.load_state_dict(self.generator.state_dict())
        self.earlier_teacher_networks = earlier.teacher_networks
        self.validation.warn_of_teacher_scores(self.teacher_networks())
        if self.trainer.progress_bar_callback is not None:
            blocks = ", ".join(map(str, earlier.blocks))
            self.trainer.progress_bar_callback.print(
                f"Initialised from {path}: blocks {blocks}; {earlier.networks}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen
        checkpoint["growth_resolution"] = self.growth.resolution
        checkpoint["growth_fade"] = self.growth.fade
        checkpoint["alpha"] = self.alpha
        checkpoint["teacher_networks"] = self.teacher_networks()
        checkpoint["captions"] = self.example_captions  # for guidance when sampling

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]
        self.growth = Growth(checkpoint["growth_resolution"], checkpoint["growth_fade"])
        self.alpha = checkpoint.get("alpha", False)
        self.earlier_teacher_networks = checkpoint.get("teacher_networks", [])
        self.validation.warn_of_teacher_scores(self.teacher_networks())

    def teacher_networks(self) -> list[str]:
        """Frozen networks that this model or an earlier one was trained with: none of them may score it."""
        taught = frozen_names(self.generator, self.discriminator, self.losses)
        return sorted({*taught, *self.earlier_teacher_networks})


def check_shape(generator: Generator, processing: SampleProcessing) -> None:
    """Raise UserError unless the generator draws images of the data's aspect ratio and channels.

    The discriminator's are the generator's already.
    """
    channels = 4 if processing.alpha else 3
    for name, own, wanted, setting in (
        ("aspect_ratio", generator.aspect_ratio, processing.aspect_ratio, "data.aspect_ratio"),
        ("image_channels", generator.drawn_channels, channels, "data.alpha"),
    ):
        if own == wanted:
            continue
        kind = type(generator)
        given = f"{setting} is {getattr(processing, setting.removeprefix('data.'))}"
        if name in inspect.signature(kind).parameters:
            raise UserError(
                f"{given}, which needs networks of {name} {wanted:g}, but the generator's is {own:g}: leave "
                f"it out of both networks, which then take the data's, or change {setting}"
            )
        raise UserError(
            f"{given}, but {kind.__name__} draws {'squares' if name == 'aspect_ratio' else 'RGB'} only: take "
            f"StyleGenerator, R3GANGenerator or TransformerGenerator, or leave out {setting}"
        )
