"""What a training draws with the moving average: the images that are scored, and samples."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen_pl.imaging.grids import to_uint8
from imagen_pl.models.latents import mix_seed
from imagen_pl.models.layers.resampling import fade_in
from imagen_pl.training.start_and_resume import StartAndResume
from imagen_pl.types import CaptionedBatch, EncodedBatch, TextFeatures

Images = Float[Tensor, "b _c h w"]


class ValidateAndSample(StartAndResume):
    """Lightning's hooks of validation, samples of captions, and the encoding of captions that all steps need.

    The arguments and attributes are those of StartAndResume.
    """

    _memory_format: torch.memory_format

    def encode(self, batch: CaptionedBatch) -> TextFeatures:
        """The captions' features: the batch's cached ones, or else encoded now."""
        if batch.text is not None:
            return batch.text
        return self.text_encoder.encode(batch.captions, self.device)

    def encoded(self, batch: CaptionedBatch) -> EncodedBatch:
        """A batch in the form that the networks read."""
        images = (batch.images.float() / 127.5 - 1).contiguous(memory_format=self._memory_format)
        latents, fade = batch.latents, self.growth.fade
        if latents is None and self.training:  # scores need no latents of real images
            latents = self.generator.to_latents(images)
        if latents is not None:
            latents = fade_in(latents.float().contiguous(memory_format=self._memory_format), fade)
        return EncodedBatch(fade_in(images, fade), self.encode(batch), batch.captions, latents)

    def encode_others(self, captions: list[str]) -> TextFeatures:
        """Features of captions of the training set, from the cache if the run has one."""
        lookup = self.run_state.text_lookup
        if lookup is None:
            return self.text_encoder.encode(captions, self.device)
        return lookup(captions).to(self.device)

    def on_validation_epoch_start(self) -> None:
        self.validation.start(self.trainer, self.growth.resolution)

    @torch.no_grad()
    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        indices, encoded = batch.indices.tolist(), self.encoded(batch)

        def draw(time: int) -> UInt8[Tensor, "b _c h w"]:
            z = self.latents_of(indices, mix_seed(self.seed, time) if time else self.seed)
            return to_uint8(self.ema.generator.for_batch(z, encoded, self.growth))

        fake = draw(0)
        # The sanity check runs only a few batches, not the whole set.
        if not self.trainer.sanity_checking:
            self.validation.update(batch, fake, draw)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.step_logger.report_scores(self, self.run_state, self.validation.finish())

    @torch.no_grad()
    def sample(self, captions: list[str], seed: int, truncation: float = 1.0) -> Images:
        """Images for captions from the moving average, -1 to 1, at the current resolution.

        Image i depends only on captions[i], the seed and i, not on the rest of the batch.
        """
        z = self.latents_of(range(len(captions)), seed)
        text = self.text_encoder.encode(captions, self.device)
        return self.ema.generator(z, text, self.growth, truncation)
