"""The whole GAN as one LightningModule: reads as the algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import to_uint8
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, LossTerms, PerSample, SeparatelyTrainedLoss, Step
from imagen_pl.losses.gradient_penalties import Penalty
from imagen_pl.losses.interpolated_captions import InterpolatedCaptionLoss
from imagen_pl.losses.self_supervised import SelfSupervisedTask
from imagen_pl.losses.text_matching import MatchingLoss
from imagen_pl.metrics.base import ImageMetric
from imagen_pl.models.augment import Augment
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.latents import latents, mix_seed
from imagen_pl.models.layers.resampling import fade_in
from imagen_pl.models.pretrained.backbones import frozen_names
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.models.text.feature_cache import TextCache
from imagen_pl.schedules import Schedule, StagePosition
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.training.kernel_ridge_fit import exclude_from_ddp, solve_by_training_set, solved_parts
from imagen_pl.training.manual_optimization import ManualOptimization, compile_each
from imagen_pl.training.validation_metrics import Validation
from imagen_pl.training.warm_start import load_stem
from imagen_pl.types import CaptionedBatch, Growth, TextFeatures

Images = Float[Tensor, "b 3 r r"]


class TextToImageGAN(ManualOptimization):
    """A generator and a discriminator that learn captions together, and the generator's average.

    Args:
        generator: draws images for captions.
        discriminator: judges images with their captions.
        text_encoder: turns captions into features; frozen.
        adversarial: the game's loss.
        generator_optimizer: makes the generator's optimizer, as `torch.optim.Adam`.
        discriminator_optimizer: makes the discriminator's optimizer.
        penalties: gradient penalties on the discriminator.
        matching: terms that make words count.
        self_supervised: pretext tasks on the images' own colour and shape.
        captioning: a captioner that learns real pairs, and teaches the generator to draw what captions say.
        unseen: captions that no image shows, which teach the generator too.
        guidance: terms of frozen networks that judge pictures by their captions.
        augment: changes to what the discriminator sees; None shows it everything as it is.
        learning_rate_schedule: factor on both learning rates by images seen; None keeps them.
        ema_halflife_kimg: half-life of the generator's average, thousands of images.
        ema_ramp: the half-life is at most this share of the images seen.
        discriminator_steps: discriminator steps a generator step; each sees fresh images.
        accumulate: parts in which a batch is worked through, to save memory.
        gradient_clip: largest norm of each network's gradient; None does not clip.
        metrics: scores of validation.
        fid_weights: file with the weights of FID's Inception (pt_inception-2015-12-05-6726825d.pth), where
            they cannot be downloaded; adds val/fid and val/kid to the metrics if they are not among them.
        channels_last: lay feature maps out channels last: faster on CPUs and on GPUs' tensor cores.
        compile: compile both networks' blocks with torch.compile; a growth stage compiles its new ones.
        seed: of latents and augmentation; with the clock it decides every random number.
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
        matching: list[MatchingLoss] | None = None,
        self_supervised: list[SelfSupervisedTask] | None = None,
        captioning: SeparatelyTrainedLoss | None = None,
        guidance: list[LossTerm] | None = None,
        unseen: InterpolatedCaptionLoss | None = None,
        augment: Augment | None = None,
        learning_rate_schedule: Schedule | None = None,
        ema_halflife_kimg: float = 10.0,
        ema_ramp: float = 0.05,
        discriminator_steps: int = 1,
        accumulate: int = 1,
        gradient_clip: float | None = None,
        metrics: list[ImageMetric] | None = None,
        fid_weights: str | None = None,
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(accumulate, gradient_clip)
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            if network.text_dim != text_encoder.dim:
                raise UserError(
                    f"model.{name}.init_args.text_dim is {network.text_dim}, but the text encoder gives "
                    f"{text_encoder.dim}: set it to {text_encoder.dim}"
                )
        for name, value in (("discriminator_steps", discriminator_steps), ("accumulate", accumulate)):
            if value < 1:
                raise UserError(f"model.{name} {value} must be 1 or more")
        self.generator, self.discriminator = generator, discriminator
        self.ema = GeneratorEMA(generator, ema_halflife_kimg, ema_ramp)
        self.text_encoder, self.adversarial = text_encoder, adversarial
        self.penalties = list(penalties or [])
        captioners = [captioning] if captioning is not None else []
        self.terms = LossTerms([*(matching or []), *(self_supervised or []), *(guidance or []), *captioners])
        for term in self.terms:
            term.check(discriminator)
        if self.penalties and not discriminator.penalizable:
            raise UserError(
                f"model.penalties: {type(discriminator).__name__} judges by a frozen network; its slopes no "
                "penalty can lower: set penalties to [], or put it in a JointDiscriminator behind another one"
            )
        self.unseen = unseen
        if unseen is not None:
            unseen.check(text_encoder.dim)
        self.augment = augment if augment is not None else nn.Identity()
        self.validation = Validation(metrics or [], fid_weights)
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.learning_rate_schedule = learning_rate_schedule
        self.discriminator_steps, self.seed = discriminator_steps, seed
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if compile:
            # Block by block: a fade changes at each batch, and a whole network would be compiled anew for it.
            compile_each([*generator.blocks().values(), *discriminator.blocks().values()])

        self.images_seen = 0
        self.last_resolution = generator.resolutions[-1]
        self.growth = Growth(self.last_resolution)
        self.example_captions: list[str] = []
        self.earlier_teacher_networks: list[
            str
        ] = []  # names of the frozen networks that taught what it starts from

    # ------------------------------------------------------------------ the algorithm

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        size = len(batch) * self.trainer.world_size
        self._seed_step()
        if is_trainable(self.discriminator):
            self._discriminator_step(batch, size)
        if (self.images_seen // size) % self.discriminator_steps == 0:
            if is_trainable(self.generator):
                self._generator_step(batch, size)
            self.ema.update(self.generator, self.images_seen + size, size * self.discriminator_steps)
        self._captioner_step(batch, size)
        self.images_seen += size
        self.reporter.report(self, size)

    def _discriminator_step(self, batch: CaptionedBatch, size: int) -> None:
        optimizer = self.optimizer_with_current_lr(0)
        text, z = self.encode(batch), self._latents(size, use=0)
        penalties = [p for p in self.penalties if (self.images_seen // size) % p.every == 0]
        confidence = []
        with self.toggled_optimizer(optimizer):
            for rows, share, sync in self.microbatches(len(batch)):
                words = text[rows]
                real = self._reals(batch.images[rows])
                with torch.no_grad():
                    fake = self.generator(z[rows], words, self.growth)
                seen = self.discriminator.extract_features(self.augment(real), self.growth)
                real_logits = self.discriminator.logits(seen, words)
                fake_logits = self.discriminator(self.augment(fake), words, self.growth)
                terms = {"d_loss": self.adversarial.discriminator(real_logits, fake_logits)}
                shown = LossInputs(real, seen, words, self.growth, batch.captions[rows])
                terms |= self._weighted("discriminator", shown)
                for penalty in penalties:
                    terms[f"d_{penalty.name}"] = self._penalty(penalty, real, fake, words)
                with sync:
                    self.backward_mean(terms, share)
                confidence.append(self.adversarial.confidence(real_logits, fake_logits).detach())
                self.reporter.note_logits(real_logits, fake_logits)
            self.step(optimizer, self._discriminator_step_parameters(), "d_grad_norm")
        self._adapt_augmentation(torch.cat(confidence), size)

    def _generator_step(self, batch: CaptionedBatch, size: int) -> None:
        optimizer = self.optimizer_with_current_lr(1)
        text, z = self.encode(batch), self._latents(size, use=1)
        with self.toggled_optimizer(optimizer):
            for rows, share, sync in self.microbatches(len(batch)):
                words = text[rows]
                fake = self.generator(z[rows], words, self.growth)
                with torch.random.fork_rng(self._cuda_devices()):
                    seen = self.discriminator.extract_features(self.augment(fake), self.growth)
                # With the same random numbers: the pair is augmented alike, so it can be compared.
                real = self._reals(batch.images[rows])
                paired, real_logits = self._real_side(real, words)
                fake_logits = self.discriminator.logits(seen, words)
                terms = {"g_loss": self.adversarial.generator(fake_logits, real_logits)}
                shown = LossInputs(fake, seen, words, self.growth, batch.captions[rows], paired, real)
                terms |= self._weighted("generator", shown)
                terms |= self._unseen(z[rows], words)
                with sync:
                    self.backward_mean(terms, share)
            self.step(optimizer, self.generator.parameters(), "g_grad_norm")
        self.generator.track(self._latents(size, use=1, everyone=True))

    def _captioner_step(self, batch: CaptionedBatch, size: int) -> None:
        term = self.terms.taught
        if term is None or (self.images_seen // size) % term.every:
            return
        optimizer = self.optimizer_with_current_lr(2)
        with self.toggled_optimizer(optimizer):
            for rows, share, sync in self.microbatches(len(batch)):
                real = self._reals(batch.images[rows])
                seen = ImageFeatures({}, real.new_zeros(len(real), 0))
                if term.needs_features:
                    with torch.no_grad():
                        seen = self.discriminator.extract_features(real, self.growth)
                shown = LossInputs(real, seen, self.encode(batch)[rows], self.growth, batch.captions[rows])
                loss = term.learn(shown)
                self.reporter.note({f"{term.name}_{key}": value for key, value in term.take_notes().items()})
                if not is_trainable(term):  # it only says how well it reads
                    self.reporter.note({term.name: loss.mean()})
                    continue
                with sync:
                    self.backward_mean({term.name: loss}, share)
            if is_trainable(term):
                self.step(optimizer, term.parameters(), f"{term.name}_grad_norm")

    # ------------------------------------------------------------------ its parts

    def _weighted(self, step: Step, shown: LossInputs) -> dict[str, PerSample]:
        """The terms' losses, each times its weight."""
        losses, notes = self.terms.losses(step, self.discriminator, self.adversarial, shown, self.images_seen)
        self.reporter.note(notes)
        return losses

    def _unseen(self, z: Float[Tensor, "b z"], words: TextFeatures) -> dict[str, PerSample]:
        """What pictures for captions between these lack, if that is asked."""
        if self.unseen is None:
            return {}
        weight = self.unseen.weight_at(self.images_seen, self.growth.resolution)
        if not weight:
            return {}
        return {f"g_{self.unseen.name}": weight * self.unseen(self.generator, z, words, self.growth)}

    def encode(self, batch: CaptionedBatch) -> TextFeatures:
        """The captions' features: from the cache where the batch brings them, else encoded now."""
        if batch.text is not None:
            return batch.text
        return self.text_encoder.encode(batch.captions, self.device)

    def _reals(self, images: UInt8[Tensor, "b 3 r r"]) -> Images:
        """Real images, -1 to 1, faded as the generator's are."""
        return fade_in(self._layout(images.float() / 127.5 - 1), self.growth.fade)

    def _layout(self, images: Images) -> Images:
        return images.contiguous(memory_format=self._memory_format)

    @torch.no_grad()
    def _real_side(
        self, real: Images, words: TextFeatures
    ) -> tuple[ImageFeatures | None, Float[Tensor, "b k"] | None]:
        """What the discriminator says of the real images, where a term of the generator compares."""
        if not (self.adversarial.compares or self.terms.need_pairs(self.images_seen, self.growth.resolution)):
            return None, None
        seen = self.discriminator.extract_features(self.augment(real), self.growth)
        return seen, self.discriminator.logits(seen, words)

    def _penalty(
        self, penalty: Penalty, real: Images, fake: Images, words: TextFeatures
    ) -> Float[Tensor, " b"]:
        def logit_fn(images: Images, text: TextFeatures) -> Float[Tensor, "b k"]:
            # Slopes are taken with regard to the images before augmentation, as R3GAN does.
            return self.discriminator.penalized_logits(self.augment(images), text, self.growth)

        weight = self.stage.penalty_weight if self.stage else None
        if weight is None:
            weight = penalty.weight_at(self.growth.resolution)
        # Compiled code has no second derivative.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.autocast(self.device.type, enabled=False):
            return weight * penalty.every * penalty(logit_fn, real.float(), fake.float(), words)

    def _latents(self, size: int, use: int, everyone: bool = False) -> Float[Tensor, "b z"]:
        """This process's latents, or everyone's.

        They are drawn for all processes together from the clock alone: the same run gives the same
        latents however many processes share it, and a resumed run goes on with the right ones.
        """
        source = torch.Generator().manual_seed(mix_seed(self.seed, self.images_seen, use))
        z = torch.randn(size, self.generator.latent_dim, generator=source)
        if not everyone:
            own = size // self.trainer.world_size
            z = z[self.global_rank * own : (self.global_rank + 1) * own]
        return z.to(self.device)

    def _cuda_devices(self) -> list[torch.device]:
        """Devices other than the CPU whose random numbers a step draws."""
        return [self.device] if self.device.type == "cuda" else []

    def _seed_step(self) -> None:
        """Noise and augmentation are decided by the clock and the rank, so a resume repeats them."""
        torch.manual_seed(mix_seed(self.seed, self.images_seen, 2 + self.global_rank))

    def _discriminator_step_parameters(self) -> list[nn.Parameter]:
        """What learns in the discriminator's step."""
        return [*self.discriminator.parameters(), *self.terms.discriminator_step_parameters()]

    def _adapt_augmentation(self, confidence: Float[Tensor, " b"], size: int) -> None:
        if isinstance(self.augment, Augment) and self.augment.target is not None:
            mean = self.trainer.strategy.reduce(confidence.mean(), reduce_op="mean")
            self.augment.adapt(float(mean), size)

    # ------------------------------------------------------------------ validation and samples

    def on_validation_epoch_start(self) -> None:
        self.validation.start(self.trainer, self.growth.resolution)

    @torch.no_grad()
    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        indices, text = batch.indices.tolist(), self.encode(batch)

        def draw(time: int) -> UInt8[Tensor, "b 3 r r"]:
            z = self._latents_of(indices, mix_seed(self.seed, time) if time else self.seed)
            return to_uint8(self.ema.generator(z, text, self.growth))

        fake = draw(0)
        if not self.trainer.sanity_checking:  # whose few batches must not be taken for the whole set
            self.validation.update(batch, fake, draw)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.reporter.report_scores(self, self.validation.finish())

    @torch.no_grad()
    def sample(self, captions: list[str], seed: int, truncation: float = 1.0) -> Images:
        """Images for captions from the moving average, -1 to 1, at the resolution grown to.

        Image i depends on captions[i], the seed and i alone, not on the rest of the batch.
        """
        z = self._latents_of(range(len(captions)), seed)
        text = self.text_encoder.encode(captions, self.device)
        return self.ema.generator(z, text, self.growth, truncation)

    def _latents_of(self, indices: Iterable[int], seed: int) -> Float[Tensor, "b z"]:
        return latents(indices, seed, self.generator.latent_dim).to(self.device)

    # ------------------------------------------------------------------ growth, optimizers, checkpoints

    def set_stage(self, here: StagePosition) -> None:
        """Take over the growth and the settings of a stage; called before each batch."""
        self.stage, self.growth = here.stage, here.growth
        self.reporter.stage = here.index

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The discriminator's (with what the terms learn), the generator's, and a captioner's."""
        optimizers = [
            self.discriminator_optimizer(
                self.by_block(self.discriminator, "discriminator", self._discriminator_step_parameters())
            ),
            self.generator_optimizer(self.by_block(self.generator, "generator")),
        ]
        if (term := self.terms.taught) is not None:
            optimizers.append(term.optimizer(term.parameters()))
        return self.record_base_lrs(optimizers)

    def setup(self, stage: str) -> None:
        """Get the scores ready, and encode every caption once, where the data set knows them all."""
        self.validation.prepare(self.trainer, self.teacher_networks())
        exclude_from_ddp(self)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CaptionedImages):
            return
        if stage == "fit":
            if (term := self.terms.taught) is not None:
                term.prepare(data.some_captions)
            self.example_captions = data.example_captions()
        captions = data.captions()
        if captions is None:
            return
        device = self.trainer.strategy.root_device
        if self.trainer.local_rank == 0:  # machines may not share a disk
            TextCache.build(self.text_encoder, captions, device=device)
        self.trainer.strategy.barrier("text cache")
        # The others find nothing left to encode.
        data.text_lookup = TextCache.build(self.text_encoder, captions, device=device)

    def on_fit_start(self) -> None:
        """What a new training starts from: another's stem, and what is solved by the training set."""
        if self.images_seen:
            return
        data = getattr(self.trainer, "datamodule", None)
        if self.generator.init_from is None:
            parts = solved_parts(self.generator, self.ema)
            solve_by_training_set(self.trainer, self, parts, self.text_encoder, data)
        else:
            self._start_from(self.generator.init_from)
        if self.unseen is not None:
            solve_by_training_set(self.trainer, self, [self.unseen], self.text_encoder, data)

    def _start_from(self, path: str) -> None:
        stem = load_stem(self.generator, path)
        self.ema.generator.load_state_dict(self.generator.state_dict())
        self.earlier_teacher_networks = stem.teacher_networks
        self.validation.tell_flattered(self.teacher_networks())
        if self.trainer.progress_bar_callback is not None:
            blocks = ", ".join(map(str, stem.blocks))
            self.trainer.progress_bar_callback.print(f"Stem of {path}: blocks {blocks}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen
        checkpoint["growth_resolution"] = self.growth.resolution
        checkpoint["growth_fade"] = self.growth.fade
        checkpoint["teacher_networks"] = self.teacher_networks()
        checkpoint["captions"] = self.example_captions  # for guidance when drawing

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]
        self.growth = Growth(checkpoint["growth_resolution"], checkpoint["growth_fade"])
        self.earlier_teacher_networks = checkpoint.get("teacher_networks", [])
        self.validation.tell_flattered(self.teacher_networks())

    def teacher_networks(self) -> list[str]:
        """Names of the frozen networks that teach it, or taught what it goes on from: none may score it."""
        teachers = [self.generator, self.discriminator, self.terms, *([self.unseen] if self.unseen else [])]
        return sorted({*frozen_names(*teachers), *self.earlier_teacher_networks})


def is_trainable(network: nn.Module) -> bool:
    """Whether any of its weights may move now."""
    return any(parameter.requires_grad for parameter in network.parameters())
