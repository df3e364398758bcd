"""Trains a style encoder on pictures that the generator itself draws, whose styles are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.inference.projection import drawn_with, mean_style, perceptual_distance
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.models.style_encoder import StyleEncoder
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.types import Growth

BATCH = 16  # pictures of a step
_LEARNING_RATE = 1e-3
# Share of pictures drawn from two latents, the second from a random resolution on: real pictures need a
# different style at each resolution.
_MIXED = 0.5
_PIXEL_WEIGHT, _PERCEPTUAL_WEIGHT = 2.0, 0.5


class StyleEncoderFit:
    """The training of an encoder, a step at a time.

    A step draws pictures of random captions and latents, and compares the styles that the encoder finds with
    the true ones, and the pictures of both styles.

    Args:
        encoder: the encoder.
        generator: the generator; its weights must not require gradients.
        text_encoder: encodes the captions.
        captions: what the pictures show.
        growth: the generator's stage of growth.
        backbone: network whose feature maps are compared, beside pixels and styles.
        steps: steps of the whole training, over which the learning rate falls to zero.
        seed: of captions, latents and mixing.
    """

    def __init__(
        self,
        encoder: StyleEncoder,
        generator: StyleGenerator,
        text_encoder: TextEncoder,
        captions: Sequence[str],
        growth: Growth,
        backbone: Backbone,
        steps: int,
        seed: int = 0,
    ) -> None:
        self.encoder, self.generator, self.growth, self.backbone = encoder, generator, growth, backbone
        self.steps = steps
        self.draw = torch.Generator().manual_seed(seed)
        device = next(generator.parameters()).device
        self.text = text_encoder.encode(list(captions), device)
        self.mean_styles = mean_style(generator, self.text, torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.99))

    def step(self, number: int) -> dict[str, float]:
        """One step of Adam; `number` counts from 0. Returns the parts of the loss, unweighted."""
        rows = torch.randint(len(self.text), (BATCH,), generator=self.draw).to(self.mean_styles.device)
        text, means = self.text[rows], self.mean_styles[rows]
        styles = self._random_styles(rows)
        pictures = drawn_with(self.generator, styles, text, self.growth)
        found = self.encoder(pictures, means)
        again = self.generator.draw(found, text, self.growth)
        parts = {
            "style": (1 - torch.cosine_similarity(found, styles, dim=-1)).mean(),
            "pixels": (again - pictures).square().mean(),
            "perceptual": perceptual_distance(self.backbone, again, pictures).mean(),
        }
        loss = parts["style"] + _PIXEL_WEIGHT * parts["pixels"] + _PERCEPTUAL_WEIGHT * parts["perceptual"]
        for group in self.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (number + 1) / 50) * (1 - number / self.steps)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in parts.items()}

    @torch.no_grad()
    def _random_styles(self, rows: Tensor) -> Float[Tensor, "b n style"]:
        """Styles of random latents, some of two latents, as in style mixing."""
        text, count = self.text[rows], len(self.generator.resolutions)
        shape = (len(rows), self.generator.latent_dim)
        first, second = (
            self.generator.style(torch.randn(shape, generator=self.draw).to(self.mean_styles), text)
            for _ in range(2)
        )
        place = torch.randint(1, max(2, count), (len(rows), 1), generator=self.draw)
        mixed = torch.rand(len(rows), 1, generator=self.draw) < _MIXED
        use_second = (torch.arange(count)[None] >= place) & mixed
        return torch.where(use_second[..., None].to(first.device), second[:, None], first[:, None])
