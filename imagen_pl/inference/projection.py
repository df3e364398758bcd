"""Projection: find the style with which a generator draws a given picture, and change its words.

As in StyleGAN2 (arXiv:1912.04958, appendix D), with one style for all resolutions or one for each
(Image2StyleGAN, arXiv:1904.03189).

Axes: b batch, n resolutions, or 1 for one style at all of them, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.inference.refinement import adam_step
from imagen_pl.inference.sampling_options import PROJECTION_STEPS
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.models.style_encoder import StyleEncoder
from imagen_pl.types import Growth, TextFeatures

_LATENTS = 256  # whose mean style is the start
_LEARNING_RATE = 0.1
_NOISE = 0.05  # standard deviation at the start; that of a style's entries is 1
_PIXEL_WEIGHT = 5.0
_TOGETHER = 0.5  # share of the steps in which all resolutions have one style

Styles = Float[Tensor, "b n style"]
Images = Float[Tensor, "b _c h w"]


def projectable(generator: Generator) -> StyleGenerator:
    """The generator. Raises UserError if it has no styles."""
    if not isinstance(generator, StyleGenerator):
        raise UserError(
            f"this model's generator is a {type(generator).__name__}, which has no styles: a picture can be "
            "projected into a StyleGenerator only"
        )
    return generator


def project(
    generator: StyleGenerator,
    images: Images,
    text: TextFeatures,
    growth: Growth,
    backbone: Backbone,
    steps: int = PROJECTION_STEPS,
    per_resolution: bool = True,
    seed: int = 0,
    on_step: Callable[[int, Images], object] | None = None,
    start: Styles | None = None,
) -> Styles:
    """Styles with which the generator draws the images as nearly as it can.

    Adam on the styles, which start at the mean style of the caption and keep the length of the mapping's
    styles. The learning rate rises over the first 5% of the steps and falls over the last 25%; noise, which
    keeps the search out of narrow minima, falls to zero over the first 75% (StyleGAN2, appendix D).

    Args:
        generator: the generator; its weights must not require gradients.
        images: the pictures, -1 to 1.
        text: their captions.
        growth: the generator's stage of growth; the images have its resolution.
        backbone: network whose feature maps are compared, beside the pixels.
        steps: steps of Adam.
        per_resolution: after half of the steps, search one style for each resolution instead of one for all,
            which comes nearer to pictures that the model did not draw; from a given `start`, in all steps.
        seed: of the latents of the start and of the noise.
        on_step: called after each step with its number, from 1, and the images of that step.
        start: where the search starts; None is the mean style of the captions.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        text = TextFeatures(text.tokens.clone(), text.mask.clone(), text.pooled.clone())
        wanted = images.detach().clone()
        maps = [unit(each) for each in backbone(wanted)]
        styles = mean_style(generator, text, draw)[:, None] if start is None else start.clone()
        if start is None and per_resolution:
            styles = styles.repeat(1, len(generator.resolutions), 1)
        move = torch.zeros_like(styles, requires_grad=True)
        mean, square = torch.zeros_like(styles), torch.zeros_like(styles)
        for step in range(1, steps + 1):
            done = (step - 0.5) / steps
            # The same for each picture, so that what is found does not depend on the others.
            noise = torch.randn(styles.shape[1:], generator=draw).to(styles)
            together = start is None and done < _TOGETHER
            if together:
                noise = noise[:1].expand_as(noise)
            moved = normalized(styles + move + _NOISE * max(0.0, 1 - done / 0.75) ** 2 * noise)
            raw = generator.draw(_one_or_all(moved), text, growth)
            drawn = _as_saved(raw)
            distance = _maps_distance(maps, backbone(drawn))
            distance = distance + _PIXEL_WEIGHT * _excess(raw, wanted).square().mean((1, 2, 3))
            (slope,) = torch.autograd.grad(distance.sum(), [move])
            if together:
                slope = slope.mean(1, keepdim=True).expand_as(slope)
            adam_step(move, slope, mean, square, step, _LEARNING_RATE * _ramp(done))
            if on_step is not None:
                on_step(step, drawn.detach())
    return normalized(styles + move).detach()


@torch.no_grad()
def encode_styles(
    encoder: StyleEncoder, generator: StyleGenerator, images: Images, text: TextFeatures
) -> Styles:
    """What an encoder of the generator finds for images, -1 to 1, with these captions."""
    # The seed with which it was trained.
    styles: Tensor = encoder(images, mean_style(generator, text, torch.Generator().manual_seed(0)))
    return styles


@torch.no_grad()
def reworded(
    generator: StyleGenerator, styles: Styles, text: TextFeatures, other: TextFeatures, seed: int = 0
) -> Styles:
    """Styles of the same pictures with other captions.

    They move by the difference between the mean styles of the two captions, so that what the caption does not
    say stays as it is.

    Args:
        generator: the generator.
        styles: found by `project` with the captions `text`.
        text: those captions.
        other: the new ones, as many.
        seed: of the latents of the mean styles.
    """
    before, after = (
        mean_style(generator, each, torch.Generator().manual_seed(seed)) for each in (text, other)
    )
    return normalized(styles + (after - before)[:, None])


@torch.no_grad()
def drawn_with(
    generator: StyleGenerator, styles: Styles, text: TextFeatures, growth: Growth
) -> Float[Tensor, "b _c h w"]:
    """The images of styles, -1 to 1."""
    return _as_saved(generator.draw(_one_or_all(styles), text, growth))


@torch.no_grad()
def mean_style(
    generator: StyleGenerator, text: TextFeatures, draw: torch.Generator
) -> Float[Tensor, "b style"]:
    """The mean style of each caption over random latents."""
    z = torch.randn(_LATENTS, generator.latent_dim, generator=draw).to(text.pooled)
    rows = torch.arange(len(text), device=z.device)
    return torch.stack([generator.style(z, text[row.repeat(len(z))]).mean(0) for row in rows])


def normalized(styles: Styles) -> Styles:
    """Styles of mean 0 and variance 1, as the mapping network gives them."""
    return F.layer_norm(styles, (styles.shape[-1],))


def psnr(images: Images, others: Images) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of images from -1 to 1, dB: 10 log10(2^2 / mean squared error)."""
    error = (images - others).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def perceptual_distance(backbone: Backbone, images: Images, others: Images) -> Float[Tensor, " b"]:
    """LPIPS (arXiv:1801.03924, eq. 1) without learnt weights: 0 for equal images, at most 4 a feature map.

    sum over maps of the mean over positions of ||u - v||^2, u and v the features there, of unit length
    """
    return _maps_distance([unit(each) for each in backbone(images)], backbone(others))


def unit(feature_map: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Features of unit length at each position."""
    return feature_map * torch.rsqrt(feature_map.square().sum(1, keepdim=True) + 1e-8)


def _maps_distance(units: list[Tensor], maps: list[Tensor]) -> Float[Tensor, " b"]:
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(units, maps, strict=True)
    return torch.stack([(u - unit(v)).square().sum(1).mean((1, 2)) for u, v in pairs]).sum(0)


def _as_saved(images: Images) -> Images:
    """Images cut to the range of a file, -1 to 1; the gradient is that of the uncut ones."""
    return images + (images.clamp(-1, 1) - images).detach()


def _excess(images: Images, wanted: Images) -> Images:
    """The difference of images to the wanted ones, but none where a file's range would hide it."""
    hidden = ((wanted >= 1) & (images > 1)) | ((wanted <= -1) & (images < -1))
    return (images - wanted).masked_fill(hidden, 0.0)


def _one_or_all(styles: Styles) -> Tensor:
    """Styles as `StyleGenerator.draw` takes them: one is for all resolutions."""
    return styles[:, 0] if styles.shape[1] == 1 else styles


def _ramp(done: float) -> float:
    """Factor on the learning rate: linear over the first 5%, a cosine over the last 25%."""
    falling = min(1.0, (1 - done) / 0.25)
    return (0.5 - 0.5 * math.cos(falling * math.pi)) * min(1.0, done / 0.05)
