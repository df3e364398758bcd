"""A generator that draws the latents of an autoencoder, which decodes them to images.

Axes: b batch, z latent vector, c channels of an autoencoder's latent, h w pixels.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.autoencoders.base import Autoencoder
from imagen_pl.models.generators.base import Generator
from imagen_pl.types import EncodedBatch, Growth, TextFeatures

_WEIGHTS = "autoencoder."  # prefix of the autoencoder's weights in a state_dict


class LatentGenerator(Generator):
    """Another generator, trained on an autoencoder's latents, as latent diffusion is (arXiv:2112.10752).

    In training the discriminator compares latents, which are a fraction of the images' size; put it into a
    LatentDiscriminator. Samples, metrics and losses that read images get decoded ones. The autoencoder is
    frozen.

    Args:
        generator: draws latents; its `image_channels` are those of the autoencoder's latents, and its
            resolutions the sides of latents.
        autoencoder: decodes them.
        cache_latents: encode each training image once, before the first batch, and keep the latents on the
            disk. False encodes in every step, as is done for streams, flipped and randomly cropped images.
        init_from: an earlier run, checkpoint or release of such a generator, whose weights a new training
            starts from, those of its autoencoder among them; None starts from random weights.
    """

    def __init__(
        self,
        generator: Generator,
        autoencoder: Autoencoder,
        cache_latents: bool = True,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        kind = type(generator).__name__
        if generator.reads_images:
            raise UserError(f"LatentGenerator.generator: a {kind} changes images and cannot draw latents")
        if generator.init_from is not None:
            raise UserError(f"{kind}.init_from is set within a LatentGenerator: set the LatentGenerator's")
        if generator.image_channels != autoencoder.latent_channels:
            raise UserError(
                f"{kind} draws {generator.image_channels} channels, but the autoencoder's latents have "
                f"{autoencoder.latent_channels}: set its image_channels to {autoencoder.latent_channels}"
            )
        if prior := getattr(generator, "prior", None):
            raise UserError(f"{kind}.prior predicts images, not latents: leave out {type(prior).__name__}")
        self.generator, self.autoencoder = generator, autoencoder
        self.cache_latents, self.init_from = cache_latents, init_from
        self.resolutions = tuple(autoencoder.downsampling * side for side in generator.resolutions)
        self.latent_dim, self.text_dim = generator.latent_dim, generator.text_dim
        self.image_channels, self.images_per_sample = generator.image_channels, generator.images_per_sample
        self.aspect_ratio = generator.aspect_ratio
        self.draws_latents = True

    def forward(
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
        guidance: float = 1.0,
        unconditional_text: TextFeatures | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        own = self._of_latents(growth)
        if guidance == 1:
            return self.from_latents(self.generator(z, text, own, truncation))
        if "guidance" not in inspect.signature(self.generator.forward).parameters:
            raise UserError(f"{type(self.generator).__name__} has no guidance: leave it at 1")
        return self.from_latents(self.generator(z, text, own, truncation, guidance, unconditional_text))

    @property
    def drawn_channels(self) -> int:
        return self.autoencoder.image_channels

    def for_batch(
        self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None
    ) -> Float[Tensor, "b _c _h _w"]:
        """In training, latents; in evaluation mode, images."""
        latents = self.generator.for_batch(z, batch, self._of_latents(growth))
        return latents if self.training else self.from_latents(latents)

    def like_generated(self, batch: EncodedBatch) -> Float[Tensor, "b _c _h _w"]:
        """The latents of the batch's images."""
        latents = self.to_latents(batch.images) if batch.latents is None else batch.latents
        return self.generator.like_generated(replace(batch, images=latents))

    def to_latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _h _w"]:
        return self.autoencoder.encode(images)

    def from_latents(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _k _h _w"]:
        return self.autoencoder.decode(images)

    def blocks(self) -> dict[int, nn.Module]:
        factor = self.autoencoder.downsampling
        return {factor * side: block for side, block in self.generator.blocks().items()}

    def track(self, z: Float[Tensor, "n z"]) -> None:
        self.generator.track(z)

    def _of_latents(self, growth: Growth | None) -> Growth:
        return self.check_growth(growth).reduced(self.autoencoder.downsampling)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.autoencoder.in_checkpoints:
            for name, weight in self.autoencoder.weights().items():
                destination[f"{prefix}{_WEIGHTS}{name}"] = weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        start = f"{prefix}{_WEIGHTS}"
        names = [name for name in state_dict if name.startswith(start)]
        found = {name.removeprefix(start): state_dict.pop(name) for name in names}
        if found and self.autoencoder.in_checkpoints:
            with torch.no_grad():
                self.autoencoder.load_weights(found)
        elif self.autoencoder.in_checkpoints:
            missing_keys.append(f"{start}*")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
