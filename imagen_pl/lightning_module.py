"""The GAN as one LightningModule: discriminator step, generator step, moving average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, LossTerms, PerSample, Step
from imagen_pl.losses.gradient_penalties import Penalty
from imagen_pl.metrics.base import ImageMetric
from imagen_pl.models.augment import Augment
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.schedules import RunState, Schedule
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.training.gradient_normalization import GradientNormalization
from imagen_pl.training.manual_optimization import compile_each, is_trainable, parts_to_compile
from imagen_pl.training.seeded_steps import DISCRIMINATOR_LATENTS, GENERATOR_LATENTS
from imagen_pl.training.validate_and_sample import ValidateAndSample
from imagen_pl.training.validation_metrics import Validation
from imagen_pl.types import CaptionedBatch, EncodedBatch, Growth, TextFeatures

Images = Float[Tensor, "b _c h w"]


@dataclass
class SharedPasses:
    """What the generator step reuses under `share_passes`.

    fake: the generated images, with their autograd graph.
    real: the real images' features and logits from the discriminator step, without one; None before it.
    """

    fake: Images
    real: tuple[ImageFeatures, Float[Tensor, "b k"]] | None = None


class TextToImageGAN(ValidateAndSample):
    """A text-conditional GAN: generator, discriminator, and the generator's exponential moving average.

    Optimization is manual, with one optimizer a network. `run_state` holds the clock (`images_seen`) and the
    growth; callbacks grow the networks and choose which blocks are trained. How a run starts, resumes and is
    saved, is scored and draws samples is in the base classes.

    Args:
        generator: generates images from latents and captions.
        discriminator: scores images with their captions.
        text_encoder: encodes captions; frozen.
        adversarial: the adversarial loss.
        generator_optimizer: makes the generator's optimizer, for example `torch.optim.Adam`.
        discriminator_optimizer: makes the discriminator's optimizer.
        penalties: gradient penalties on the discriminator.
        losses: further loss terms: text and image matching, self-supervised tasks, captioning, CLIP guidance.
            A configuration overlay appends to the list with the key `losses+`.
        augment: augments the images that the discriminator reads; None does not augment.
        gradient_normalization: normalises the gradient that the generator gets through the discriminator;
            None leaves it as it is.
        learning_rate_schedule: factor on both learning rates by images seen; None keeps them constant.
        beta2_schedule: second beta of both networks' optimizers by images seen, such as Linear from 0.9 to
            0.99 (R3GAN, arXiv:2501.05441); None keeps the optimizers' own.
        ema_halflife_kimg: half-life of the generator's moving average, thousands of images.
        ema_ramp: the half-life is at most this share of the images seen.
        discriminator_steps: discriminator steps for each generator step; each on new images.
        share_passes: train both networks on the same generated images instead of generating new ones for the
            generator step, and keep the discriminator's features of the real images from its own step for
            the generator step. This saves one pass of each network. The kept features are one discriminator
            step old. With `augment` they are computed again, so that real and generated images are
            augmented alike.
        accumulate: micro-batches into which a batch is split to save memory.
        gradient_clip: largest norm of each network's gradient; None does not clip.
        metrics: validation metrics.
        fid_weights: file with FID's Inception weights (pt_inception-2015-12-05-6726825d.pth), for machines
            that cannot download them; adds val/fid and val/kid to the metrics if they are not among them.
        channels_last: use the channels_last memory format: faster on CPUs and on GPUs' tensor cores.
        compile: compile both networks' blocks with torch.compile; each growth stage compiles its new blocks.
        seed: seed of latents and augmentation; together with the clock it determines every random number.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        text_encoder: TextEncoder,
        adversarial: AdversarialLoss,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        penalties: list[Penalty] | None = None,
        losses: list[LossTerm] | None = None,
        augment: Augment | None = None,
        gradient_normalization: GradientNormalization | None = None,
        learning_rate_schedule: Schedule | None = None,
        beta2_schedule: Schedule | None = None,
        ema_halflife_kimg: float = 10.0,
        ema_ramp: float = 0.05,
        discriminator_steps: int = 1,
        share_passes: bool = False,
        accumulate: int = 1,
        gradient_clip: float | None = None,
        metrics: list[ImageMetric] | None = None,
        fid_weights: str | None = None,
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(RunState(Growth(generator.resolutions[-1])), accumulate, gradient_clip)
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            if network.text_dim != text_encoder.dim:
                raise UserError(
                    f"model.{name}.init_args.text_dim is {network.text_dim}, but the text encoder gives "
                    f"{text_encoder.dim}: set it to {text_encoder.dim}"
                )
        if generator.images_per_sample != discriminator.images_per_sample:
            raise UserError(
                f"{type(generator).__name__} gives {generator.images_per_sample} images of each sample, but "
                f"{type(discriminator).__name__} reads {discriminator.images_per_sample}: set `images` of "
                "TransformerDiscriminator to the length of TransformerGenerator's `noise`, to 1 with other "
                "generators"
            )
        if generator.image_channels != discriminator.image_channels:
            raise UserError(
                f"{type(generator).__name__} gives images of {generator.image_channels} channels, but "
                f"{type(discriminator).__name__} reads {discriminator.image_channels}: give both the same "
                "image_channels"
            )
        if generator.aspect_ratio != discriminator.aspect_ratio:
            raise UserError(
                f"{type(generator).__name__} gives images of aspect ratio {generator.aspect_ratio:g}, but "
                f"{type(discriminator).__name__} reads {discriminator.aspect_ratio:g}: give both the same "
                "aspect_ratio"
            )
        for name, value in (("discriminator_steps", discriminator_steps), ("accumulate", accumulate)):
            if value < 1:
                raise UserError(f"model.{name} {value} must be 1 or more")
        if share_passes and accumulate > 1:
            raise UserError(
                f"model.share_passes holds a whole batch in memory, which accumulate {accumulate} is there "
                "to avoid: set share_passes to false or accumulate to 1"
            )
        if gradient_normalization is not None and accumulate > 1:
            raise UserError(
                f"model.gradient_normalization measures whole batches: set accumulate {accumulate} to 1"
            )
        self.generator, self.discriminator = generator, discriminator
        self.ema = GeneratorEMA(generator, ema_halflife_kimg, ema_ramp)
        self.text_encoder, self.adversarial = text_encoder, adversarial
        self.penalties = list(penalties or [])
        self.losses = LossTerms(losses or [])
        self.losses.check(generator, discriminator)
        if self.penalties and not discriminator.penalizable:
            raise UserError(
                f"model.penalties: {type(discriminator).__name__} {discriminator.why_not_penalizable}: set "
                "penalties to [], or put it in a JointDiscriminator behind another one"
            )
        self.augment, self.gradient_normalization = augment, gradient_normalization
        if augment is not None:
            augment.image_channels = generator.image_channels
        self.validation = Validation(metrics or [], fid_weights)
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.learning_rate_schedule, self.beta2_schedule = learning_rate_schedule, beta2_schedule
        self.discriminator_steps, self.share_passes, self.seed = discriminator_steps, share_passes, seed
        self._generator_steps = 0  # taken at the present batch size, before the current one
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if compile:
            # Part by part: the fade changes with each batch, and would recompile a whole network.
            compile_each([*parts_to_compile(generator), *parts_to_compile(discriminator)])

    # ------------------------------------------------------------------ the algorithm

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        size = len(batch) * self.trainer.world_size
        self.seed_step()
        encoded = self.encoded(batch)
        self._generator_steps, other = divmod(self.images_seen // size, self.discriminator_steps)
        generator_turn = other == 0
        trains_generator = generator_turn and is_trainable(self.generator)
        shared = self._generated(encoded, size) if self.share_passes and trains_generator else None
        if is_trainable(self.discriminator):
            self._discriminator_step(encoded, size, shared)
        if generator_turn:
            if trains_generator:
                self._generator_step(encoded, size, shared)
            self.ema.update(self.generator, self.images_seen + size, size * self.discriminator_steps)
        self._captioner_step(encoded, size)
        self.images_seen += size
        self.step_logger.report(self, self.run_state, self.optimization_numbers())

    def _discriminator_step(self, batch: EncodedBatch, size: int, shared: SharedPasses | None) -> None:
        optimizer = self.optimizer_with_current_lr(0)
        z = self.latents_of_step(size, DISCRIMINATOR_LATENTS)
        penalties = [p for p in self.penalties if (self.images_seen // size) % p.every == 0]
        confidence = []
        with self.toggled_optimizer(optimizer):
            for rows, share, sync in self.microbatches(len(batch)):
                part = batch[rows]
                real, text = self.generator.like_generated(part), part.text
                with torch.no_grad():
                    fake = self._fake(z[rows], part, shared)
                fake = fake.detach()
                features = self.discriminator.extract_features(self._augmented(real), self.growth)
                real_logits = self.discriminator.logits(features, text)
                if shared is not None and self.augment is None:
                    shared.real = features.detach(), real_logits.detach()
                fake_logits = self.discriminator(self._augmented(fake), text, self.growth)
                losses = {"d_loss": self.adversarial.discriminator(real_logits, fake_logits)}
                inputs = LossInputs(
                    part.images, features, text, self.growth, part.captions, encode=self.encode_others
                )
                losses |= self._weighted("discriminator", inputs)
                for penalty in penalties:
                    losses[f"d_{penalty.name}"] = self._penalty(penalty, real, fake, text)
                with sync:
                    self.backward_mean(losses, share)
                confidence.append(self.adversarial.confidence(real_logits, fake_logits).detach())
                self.step_logger.note_logits(real_logits, fake_logits)
            self.step(optimizer, self.discriminator_step_parameters(), "d_grad_norm")
        self.adapt_augmentation(torch.cat(confidence), size)

    def _generator_step(self, batch: EncodedBatch, size: int, shared: SharedPasses | None) -> None:
        optimizer = self.optimizer_with_current_lr(1)
        z = self.latents_of_step(size, GENERATOR_LATENTS)
        with self.toggled_optimizer(optimizer):
            for rows, share, sync in self.microbatches(len(batch)):
                part = batch[rows]
                fake = self._fake(z[rows], part, shared)
                losses = self.generator_losses(fake, z[rows], part, self.augmentation_seed(rows), shared)
                with sync:
                    self.backward_mean(losses, share)
            self.step(optimizer, self.generator_step_parameters(), "g_grad_norm")
        self.generator.track(self.latents_of_step(size, GENERATOR_LATENTS, all_processes=True))

    def generator_losses(
        self,
        fake: Images,
        z: Float[Tensor, "b z"],
        batch: EncodedBatch,
        seed: int,
        shared: SharedPasses | None = None,
    ) -> dict[str, PerSample]:
        """The generator's weighted losses of generated images, by name: the adversarial loss is g_loss.

        Args:
            fake: images generated for the batch's captions.
            z: their latents.
            batch: the real images with the same captions.
            seed: of the augmentation. Each pair of a real and a generated image is augmented identically, so
                that they can be compared.
            shared: what the discriminator's step has computed already.
        """
        images = self._normalizing(fake)
        features = self.discriminator.extract_features(self._augmented(images, seed), self.growth)
        real_features, real_logits = self._real_features(batch, seed, shared)
        fake_logits = self.discriminator.logits(features, batch.text)
        losses = {"g_loss": self.adversarial.generator(fake_logits, real_logits)}
        result = finished(fake, self.generator.image_channels)
        if self.losses.need_pixels(self.images_seen, self.growth.resolution):
            result = self.generator.from_latents(result)
        inputs = LossInputs(
            result, features, batch.text, self.growth, batch.captions,
            real_features, batch.images, self.generator, z, self.encode_others,
        )  # fmt: skip
        return losses | self._weighted("generator", inputs)

    def _captioner_step(self, batch: EncodedBatch, size: int) -> None:
        term = self.losses.separately_trained
        if term is None or (self.images_seen // size) % term.every:
            return
        optimizer = self.optimizer_with_current_lr(2)
        with self.toggled_optimizer(optimizer):
            for rows, share, sync in self.microbatches(len(batch)):
                part = batch[rows]
                features = ImageFeatures({}, part.images.new_zeros(len(part), 0))
                if term.needs_features:
                    with torch.no_grad():
                        real = self.generator.like_generated(part)
                        features = self.discriminator.extract_features(real, self.growth)
                inputs = LossInputs(part.images, features, part.text, self.growth, part.captions)
                loss = term.training_loss(inputs)
                self.step_logger.note({f"{term.name}_{key}": x for key, x in term.take_notes().items()})
                if not is_trainable(term):  # a frozen captioner: only log its loss
                    self.step_logger.note({term.name: loss.mean()})
                    continue
                with sync:
                    self.backward_mean({term.name: loss}, share)
            if is_trainable(term):
                self.step(optimizer, term.parameters(), f"{term.name}_grad_norm")

    # ------------------------------------------------------------------ parts of the steps

    def _generated(self, batch: EncodedBatch, size: int) -> SharedPasses:
        """Generated images for both steps, with the autograd graph that the generator step needs."""
        z = self.latents_of_step(size, GENERATOR_LATENTS)
        return SharedPasses(self.generator.for_batch(z, batch, self.growth))

    def _fake(self, z: Float[Tensor, "b z"], batch: EncodedBatch, shared: SharedPasses | None) -> Images:
        """Generated images: those of `shared`, or else new ones."""
        return self.generator.for_batch(z, batch, self.growth) if shared is None else shared.fake

    def _weighted(self, step: Step, inputs: LossInputs) -> dict[str, PerSample]:
        """The weighted losses of the loss terms, by name."""
        losses, notes = self.losses.weighted(
            step, self.discriminator, self.adversarial, inputs, self.images_seen, self._generator_steps
        )
        self.step_logger.note(notes)
        return losses

    def _augmented(self, images: Images, seed: int | None = None) -> Images:
        """Augmented images for the discriminator; the same seed augments two batches identically."""
        return images if self.augment is None else self.augment(images, seed)

    def _normalizing(self, fake: Images) -> Images:
        """Generated images whose gradient from the discriminator is normalised, if that is wanted."""
        if self.gradient_normalization is None:
            return fake
        return self.gradient_normalization(fake, self.loss_scale())

    @torch.no_grad()
    def _real_features(
        self, batch: EncodedBatch, seed: int, shared: SharedPasses | None
    ) -> tuple[ImageFeatures | None, Float[Tensor, "b k"] | None]:
        """Features and logits of the real images, if a generator loss needs them; else None."""
        needed = self.losses.need_pairs(self.images_seen, self.growth.resolution)
        if not (self.adversarial.compares or needed):
            return None, None
        if shared is not None and shared.real is not None:
            return shared.real
        augmented = self._augmented(self.generator.like_generated(batch), seed)
        features = self.discriminator.extract_features(augmented, self.growth)
        return features, self.discriminator.logits(features, batch.text)

    def _penalty(self, penalty: Penalty, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        seed = self.augmentation_seed(slice(0, None)) if penalty.compares else None

        def logit_fn(images: Images, text: TextFeatures) -> Float[Tensor, "b k"]:
            # Gradients are taken with respect to the images before augmentation, as in R3GAN.
            return self.discriminator.penalized_logits(self._augmented(images, seed), text, self.growth)

        weight = self.run_state.stage.penalty_weight if self.run_state.stage else None
        if weight is None:
            weight = penalty.weight_at(self.growth.resolution, self.images_seen)
        # torch.compile does not support second derivatives.
        eager = torch.compiler.set_stance("force_eager")
        rows = slice(penalty.count(len(real)))
        with eager, torch.autocast(self.device.type, enabled=False):
            value = penalty(logit_fn, real[rows].float(), fake[rows].float(), text[rows])
        return weight * penalty.every * value

    # ------------------------------------------------------------------ optimizers

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers: discriminator (with the loss terms' parameters), generator, and captioner if any."""
        discriminator = self.by_block(
            self.discriminator, "discriminator", self.discriminator_step_parameters()
        )
        generator = self.by_block(self.generator, "generator", self.generator_step_parameters())
        optimizers = [self.discriminator_optimizer(discriminator), self.generator_optimizer(generator)]
        if (term := self.losses.separately_trained) is not None:
            optimizers.append(term.optimizer(term.parameters()))
        return self.record_base_lrs(optimizers)

    def discriminator_step_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained in the discriminator step."""
        return [*self.discriminator.parameters(), *self.losses.parameters_trained_in("discriminator")]

    def generator_step_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained in the generator step."""
        return [*self.generator.parameters(), *self.losses.parameters_trained_in("generator")]


def finished(images: Images, channels: int) -> Images:
    """The result, where a generator gives several images of each sample, joined in channels."""
    return images if images.shape[1] == channels else images[:, -channels:]
