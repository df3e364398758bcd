"""A growing, text-conditioned style generator.

StyleGAN2's modulation (arXiv:1912.04958) in residual blocks, one per resolution, that grow as in
arXiv:1710.10196. The caption enters through the style, as in StyleGAN-T (arXiv:2301.09515), and
through cross-attention to its tokens, as in GigaGAN (arXiv:2303.05511).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.blocks import BlockPlan, StyleBlock
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.models.layers.initialisation import activation, linear
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import upsample
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.types import Growth, TextFeatures, width_of


class StyleGenerator(Generator):
    """Generates images for captions, from 4 px up to any power of two.

    Resolutions are heights, px.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. Its
            last key is the resolution of the finished model.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        style_dim: size of the style w.
        mapping_layers: layers from the latent to its style.
        layers_per_block: residual layers, of two convolutions each, at every resolution.
        text_attention_at: resolutions with cross-attention from pixels to the caption's tokens.
        self_attention_at: resolutions with self-attention between pixels; costs grow with resolution^4.
        output: "sum" adds up the RGB outputs of all resolutions, each finer one a correction (StyleGAN2);
            "last" uses the finest alone and blends from the one below while it fades in (ProGAN).
        noise: add learned amounts of fresh noise in training (StyleGAN); none is added when sampling.
        style_mixing: share of training images generated from two latents, the second for the finer
            blocks (StyleGAN).
        mean_decay: decay per step of the moving average of the latent's style, 0 to 1.
        latent_gain: factor on the distance of the latent's style from its moving average, more than 0. If the
            model of `init_from` ignores its latent, as after training with paired losses, 10 makes samples of
            a caption differ from the first step on.
        block: constructor of the blocks; the class_path of a subclass of StyleBlock gives another kind.
        text_noise: noise added to the captions' vectors in training, as a share of their length, so that
            neighbouring captions give similar images (conditioning augmentation, as in StackGAN,
            arXiv:1612.03242, section 3.2, of a fixed width). None is added when sampling.
        init_from: a run's folder, a checkpoint or a release; a new training starts from the moving average
            of its generator and from its discriminator, if it has one of the same class, for the parameters
            that both have by name: mapping, prior, and the blocks of shared resolutions. It is read once;
            resuming and sampling do not need it.
        text_adapter: fine-tunes the captions' features for this network; None uses them unchanged.
        prior: predicts image features from a caption; the mapping reads them beside the caption's vector.
        image_channels: of the images: 3 for RGB, 4 for RGBA, or those of an autoencoder's latents.
        aspect_ratio: width of the images / their height; the width is whole at every resolution.
    """

    def __init__(
        self,
        channels: dict[int, int],
        text_dim: int = 384,
        latent_dim: int = 64,
        style_dim: int = 256,
        mapping_layers: int = 2,
        layers_per_block: int = 1,
        text_attention_at: list[int] | None = None,
        self_attention_at: list[int] | None = None,
        output: Literal["sum", "last"] = "sum",
        noise: bool = False,
        style_mixing: float = 0.0,
        mean_decay: float = 0.998,
        latent_gain: float = 1.0,
        text_noise: float = 0.0,
        block: Callable[[BlockPlan], StyleBlock] = StyleBlock,
        init_from: str | None = None,
        text_adapter: TextAdapter | None = None,
        prior: ImagePrior | None = None,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        check_channels(channels)
        text_at, self_at = set(text_attention_at or ()), set(self_attention_at or ())
        for name, at in (("text_attention_at", text_at), ("self_attention_at", self_at)):
            if not at <= channels.keys():
                raise ValueError(f"{name} {sorted(at - channels.keys())} is not among {sorted(channels)}")
        if latent_gain <= 0:
            raise ValueError(f"latent_gain {latent_gain} must be more than 0")
        self.resolutions = tuple(channels)
        self.latent_dim, self.text_dim, self.image_channels = latent_dim, text_dim, image_channels
        self.aspect_ratio = aspect_ratio
        self.output, self.style_mixing, self.mean_decay = output, style_mixing, mean_decay
        self.text_noise, self.init_from = text_noise, init_from
        if text_adapter is not None:
            text_adapter.check(text_dim)
        if prior is not None:
            prior.check(text_dim)
        self.text_adapter, self.prior = text_adapter, prior
        words_dim = text_dim + (prior.predicted_dim if prior is not None else 0)
        self.mapping = Mapping(latent_dim, words_dim, style_dim, mapping_layers, latent_gain)
        start = self.resolutions[0]
        # The first map is a linear function of the style, as in DCGAN (arXiv:1511.06434).
        self.first_map = linear(style_dim, channels[start] * start * width_of(start, aspect_ratio))
        self.grown = nn.ModuleDict()  # by resolution, written in decimal
        before = channels[start]
        for resolution, width in channels.items():
            plan = BlockPlan(
                resolution,
                before,
                width,
                style_dim,
                upsampled=resolution != start,
                layers=layers_per_block,
                text_dim=text_dim if resolution in text_at else None,
                self_attention=resolution in self_at,
                noise=noise,
                image_channels=image_channels,
            )
            self.grown[str(resolution)] = block(plan)
            before = width
        self.latent_mean: Tensor
        self.register_buffer("latent_mean", torch.zeros(self.mapping.latent_style_dim))

    def blocks(self) -> dict[int, nn.Module]:
        return {int(resolution): block for resolution, block in self.grown.items()}

    def forward(
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
        guidance: float = 1.0,
        unconditional_text: TextFeatures | None = None,
    ) -> Float[Tensor, "b _c h w"]:
        text, words = self._read(text)
        style = self._style(z, words, truncation, guidance, unconditional_text)
        mixed, crossover = self._mixed_style(style, words)
        styles = [style if resolution < crossover else mixed for resolution in self.resolutions]
        return self._draw(styles, text, growth)

    def style(
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        truncation: float = 1.0,
        guidance: float = 1.0,
        unconditional_text: TextFeatures | None = None,
    ) -> Float[Tensor, "b style"]:
        """The first half of `forward`: styles w, of variance 1 where there is no guidance."""
        return self._style(z, self._read(text)[1], truncation, guidance, unconditional_text)

    def draw(
        self,
        style: Float[Tensor, "b style"] | Float[Tensor, "b n style"],
        text: TextFeatures,
        growth: Growth | None = None,
    ) -> Float[Tensor, "b _c h w"]:
        """The second half of `forward`: images, about -1 to 1.

        Args:
            style: one style an image, or one for each resolution, from small to large.
            text: the captions.
            growth: as of `forward`.
        """
        styles = [style] * len(self.resolutions) if style.ndim == 2 else list(style.unbind(1))
        return self._draw(styles, self._adapted(text), growth)

    def _read(self, text: TextFeatures) -> tuple[TextFeatures, Float[Tensor, "b _ck"]]:
        """Text features for the attention layers, and the vector that the mapping reads."""
        guess = self._guess(text)  # before text_noise is added: the prior was fitted to clean captions
        text = self._adapted(text)
        return text, _beside(text.pooled, guess)

    def _adapted(self, text: TextFeatures) -> TextFeatures:
        """Text features with noise in training, through the adapter if there is one."""
        if self.training and self.text_noise:
            text = text.with_noise(self.text_noise)
        if self.text_adapter is not None:
            text = self.text_adapter(text)
        return text

    def _style(
        self,
        z: Float[Tensor, "b z"],
        words: Float[Tensor, "b _ck"],
        truncation: float,
        guidance: float,
        unconditional_text: TextFeatures | None,
    ) -> Float[Tensor, "b style"]:
        style = self.mapping(z, words, self.latent_mean, truncation)
        if guidance == 1:
            return style
        return torch.lerp(self._style_without(z, unconditional_text, truncation), style, guidance)

    def _draw(
        self, styles: Sequence[Float[Tensor, "b style"]], text: TextFeatures, growth: Growth | None
    ) -> Float[Tensor, "b _c h w"]:
        """Images of one style for each resolution."""
        growth = self.check_growth(growth)
        start = self.resolutions[0]
        x = self.first_map(styles[0]).unflatten(1, (-1, start, width_of(start, self.aspect_ratio)))
        rgb: Tensor | None = None
        for resolution, style in zip(self.resolutions, styles, strict=True):
            if resolution > growth.resolution:
                break
            block = self._block(resolution)
            x = block(x, style, text)
            newest = resolution == growth.resolution
            rgb = self._paint(block.to_rgb(x, style), rgb, growth.fade if newest else 1.0)
        assert rgb is not None  # the first resolution is never beyond the growth
        return at_least_float32(rgb)

    def _style_without(
        self, z: Float[Tensor, "b z"], unconditional_text: TextFeatures | None, truncation: float
    ) -> Float[Tensor, "b style"]:
        """Each latent's style without its caption: the mean over the unconditional captions."""
        if unconditional_text is None:
            raise ValueError(
                "guidance other than 1 needs the captions to lead away from: give unconditional_text"
            )
        guess = self._guess(unconditional_text)
        if self.text_adapter is not None:
            unconditional_text = self.text_adapter(unconditional_text)
        rows = len(unconditional_text)
        words = _beside(unconditional_text.pooled, guess).repeat(len(z), 1)
        styles = self.mapping(z.repeat_interleave(rows, 0), words, self.latent_mean, truncation)
        return styles.unflatten(0, (len(z), rows)).mean(1)

    def _guess(self, text: TextFeatures) -> Float[Tensor, "b k"] | None:
        return None if self.prior is None else self.prior(text.pooled)

    def _block(self, resolution: int) -> StyleBlock:
        block = self.grown[str(resolution)]
        assert isinstance(block, StyleBlock)
        return block

    def _paint(self, rgb: Tensor, coarser: Tensor | None, fade: float) -> Tensor:
        """The image so far: this resolution's RGB output, weighted by `fade`, and the coarser one."""
        if coarser is None:
            return rgb
        if self.output == "sum":
            return upsample(coarser) + fade * rgb
        return rgb if fade >= 1 else upsample(coarser).lerp(rgb, fade)

    def _mixed_style(self, style: Tensor, words: Tensor) -> tuple[Tensor, int]:
        """Style for the finer blocks, and the resolution from which it is used."""
        if not self.training or self.style_mixing == 0:
            return style, self.resolutions[-1] + 1
        other = torch.randn(style.shape[0], self.latent_dim, device=style.device)
        swap = torch.rand(style.shape[0], 1, device=style.device) < self.style_mixing
        mixed = torch.where(swap, self.mapping(other, words, self.latent_mean), style)
        place = int(torch.randint(1, len(self.resolutions), ())) if len(self.resolutions) > 1 else 0
        return mixed, self.resolutions[place]

    @torch.no_grad()
    def track(self, z: Float[Tensor, "n z"]) -> None:
        """Update the moving average of the latent's style from these latents (StyleGAN, section 2.1)."""
        self.latent_mean.lerp_(self.mapping.latent(z).float().mean(0), 1 - self.mean_decay)


def _beside(pooled: Float[Tensor, "b c"], guess: Float[Tensor, "b k"] | None) -> Float[Tensor, "b _ck"]:
    return pooled if guess is None else torch.cat([pooled, guess.to(pooled.dtype)], dim=1)


class Mapping(nn.Module):
    """From a latent and a caption to a style: each is mapped separately, then both are joined."""

    def __init__(
        self, latent_dim: int, text_dim: int, style_dim: int, layers: int, latent_gain: float = 1.0
    ) -> None:
        super().__init__()
        self.latent_gain = latent_gain
        sizes = [latent_dim] + [style_dim] * layers
        self.latent_style_dim = sizes[-1]
        self.latent_layers = nn.ModuleList(linear(a, b) for a, b in itertools.pairwise(sizes))
        self.text = linear(text_dim, style_dim)
        self.join = linear(style_dim + self.latent_style_dim, style_dim)
        self.out = linear(style_dim, style_dim)
        self.activation = activation()

    def latent(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b v"]:
        """Style of the latent alone."""
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.latent_layers:
            x = self.activation(layer(x))
        return x

    def forward(
        self,
        z: Float[Tensor, "b z"],
        pooled: Float[Tensor, "b c"],
        latent_mean: Float[Tensor, " v"],
        truncation: float = 1.0,
    ) -> Float[Tensor, "b style"]:
        latent = self.latent(z)
        if (factor := truncation * self.latent_gain) != 1:
            # The caption is not truncated (StyleGAN-T, section 3.3): it says what to draw.
            latent = torch.lerp(latent_mean.to(latent.dtype), latent, factor)
        words = self.activation(self.text(pooled))
        x = self.activation(self.join(torch.cat([latent, words], dim=1)))
        return F.layer_norm(self.out(x), (x.shape[1],))
