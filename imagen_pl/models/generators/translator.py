"""A generator that translates images to other domains, which captions name (StarGAN and StarGAN v2).

The networks follow the description in StarGAN v2's paper (arXiv:1912.01865, section 2.1 and appendix H). One
generator serves all domains (StarGAN, arXiv:1711.09020). A domain is a caption, such as "Phosphor, duotone".

Axes: b batch, c i o channels, h w pixels, z latent, v vector.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.generators.base import ImageToImageGenerator
from imagen_pl.models.layers.initialisation import SLOPE, activation, conv, linear
from imagen_pl.models.layers.instance_norm import instance_norm
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample, upsample
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import EncodedBatch, Growth, TextFeatures

Images = Float[Tensor, "b 3 r r"]
Styles = Float[Tensor, "b style"]


class Translator(ImageToImageGenerator):
    """Translates images to the domains of their captions, in a style from a latent or from a reference image.

    Instance normalization removes the source's style on the way down, and adaptive instance normalization
    (AdaIN, arXiv:1703.06868) adds the wanted style on the way up. Mapping network and style encoder read the
    domain's caption, where the paper has one output branch for each domain.

    In training, source image i is the image of the row before, so that it usually is of another domain, and
    the discriminator compares the translation with row i's own image, a real one of the same domain.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the side of the images; at the first one, the image is only changed by `blocks`, with no further
            halving: 16 for images of 64 px keeps their layout.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        style_dim: size of the style.
        blocks: residual blocks at the smallest resolution, before the style is added and as many after it.
        mapping_layers: layers from the latent to its part of the style.
        skips: resolutions, among `channels` but the smallest, whose maps from the way down are added on the
            way up. They keep fine detail of the source, which suits changes of colour more than of shape.
        residual: draw what is added to the source image, which is nothing at the start. Short trainings then
            keep the source's shapes from the first step on. The paper draws the whole image.
        style_from: "latent" has many styles a domain (StarGAN v2). "domain" has one, from the caption alone,
            as StarGAN; latents and reference images then change nothing, and StyleReconstruction and
            StyleDiversity must be left out.
        reference_share: share of each training batch, 0 to 1, whose style comes from a real image of the
            domain instead of a latent. The paper trains on both in turn. It does not apply to validation.
        init_from: a run's folder, a checkpoint or a release of a translator with the same settings, from
            whose moving average a new training starts; None starts from random weights.
    """

    verb = "translate"
    verb_arguments = "picture.png --to DOMAIN"

    def __init__(
        self,
        channels: dict[int, int],
        text_dim: int = 384,
        latent_dim: int = 16,
        style_dim: int = 64,
        blocks: int = 2,
        mapping_layers: int = 2,
        skips: list[int] | None = None,
        residual: bool = True,
        style_from: Literal["latent", "domain"] = "latent",
        reference_share: float = 0.5,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        check_channels(channels)
        if len(channels) < 2 or next(iter(channels)) < 8:
            raise UserError(f"Translator.channels {channels} must have two resolutions or more, from 8 px up")
        small, *larger = channels
        if not set(skips or ()) <= set(larger):
            raise UserError(f"Translator.skips {skips} must be among {larger}")
        if not 0 <= reference_share <= 1:
            raise UserError(f"Translator.reference_share {reference_share} must be from 0 to 1")
        if blocks < 1:
            raise UserError(f"Translator.blocks {blocks} must be 1 or more")
        self.resolutions, self.latent_dim, self.text_dim = (larger[-1],), latent_dim, text_dim
        self.style_dim, self.style_from, self.init_from = style_dim, style_from, init_from
        self.reference_share = reference_share if style_from == "latent" else 0.0
        self.skips, self.residual = tuple(skips or ()), residual
        self.from_rgb = conv(3, channels[larger[-1]], 3)
        # From large to small, and back; each changes the side of the maps by a factor of 2.
        pairs = [(channels[b], channels[a]) for a, b in itertools.pairwise(channels)]
        self.down = nn.ModuleList(EncoderBlock(wide, narrow, halves=True) for wide, narrow in reversed(pairs))
        self.up = nn.ModuleList(DecoderBlock(after, before, style_dim, True) for before, after in pairs)
        width = channels[small]
        self.encode = nn.ModuleList(EncoderBlock(width, width, halves=False) for _ in range(blocks))
        self.decode = nn.ModuleList(DecoderBlock(width, width, style_dim, False) for _ in range(blocks))
        self.to_rgb = conv(channels[larger[-1]], 3, 3, zero=residual)
        latents = latent_dim if style_from == "latent" else 0
        self.mapping = StyleHead(latents, text_dim, style_dim, mapping_layers)
        self.style_encoder = StyleEncoder(channels, text_dim, style_dim) if latents else None

    # ------------------------------------------------------------------ translation

    def translate(self, images: Images, style: Styles) -> Images:
        """The images in the domains and styles of `style`; -1 to 1, and about so."""
        x = self.from_rgb(images)
        kept: dict[int, Tensor] = {}
        for block in self.down:
            if x.shape[-1] in self.skips:
                kept[x.shape[-1]] = x
            x = block(x)
        for block in self.encode:
            x = block(x)
        for block in (*self.decode, *self.up):
            x = block(x, style)
            if x.shape[-1] in kept:
                x = (x + kept[x.shape[-1]]) * 0.5**0.5
        drawn = at_least_float32(self.to_rgb(F.leaky_relu(x, SLOPE)))
        return images + drawn if self.residual else drawn

    def style_of_latent(self, z: Float[Tensor, "b z"], text: TextFeatures) -> Styles:
        """Styles of latents in the domains of the captions; of variance 1."""
        styles: Tensor = self.mapping(z if self.style_from == "latent" else z[:, :0], text.pooled)
        return styles

    def style_of_image(self, images: Images, text: TextFeatures) -> Styles:
        """Styles of images, -1 to 1, of the captions' domains; of variance 1."""
        if self.style_encoder is None:
            return self.style_of_latent(images.new_zeros(len(images), self.latent_dim), text)
        styles: Tensor = self.style_encoder(images, text.pooled)
        return styles

    # ------------------------------------------------------------------ training

    def sources(self, images: Images, text: TextFeatures) -> tuple[Images, TextFeatures]:
        """The source image of each row of a batch, and its own domain: those of the row before."""
        return images.roll(1, 0), text.roll(1)

    def latent_rows(self, rows: int) -> int:
        """How many of a batch's rows, the first ones, have a style from their latent."""
        return rows - int(self.reference_share * rows) if self.training else rows

    def batch_style(self, z: Float[Tensor, "b z"], images: Images, text: TextFeatures) -> Styles:
        """The styles of a batch: of the latents, and in training of `images` for the last rows.

        The style of a reference image is a given one: it does not train the style encoder.
        """
        n = self.latent_rows(len(z))
        styles = self.style_of_latent(z[:n], text[:n])
        if n == len(z):
            return styles
        with torch.no_grad():
            references = self.style_of_image(images[n:], text[n:])
        return torch.cat([styles, references.to(styles.dtype)])

    def for_batch(self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None) -> Images:
        """The image of the row before, translated to the domain of the row's caption."""
        self.check_growth(growth)
        sources, _ = self.sources(batch.images, batch.text)
        return self.translate(sources, self.batch_style(z, batch.images, batch.text))

    def rows_to_show(
        self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None
    ) -> dict[str, Images]:
        sources, _ = self.sources(batch.images, batch.text)
        rows = {
            "source, to": sources,
            "by latent": self.translate(sources, self.style_of_latent(z, batch.text)),
        }
        if self.style_encoder is None:
            return rows
        styles = self.style_of_image(batch.images, batch.text)
        return {**rows, "by reference": self.translate(sources, styles), "reference": batch.images}


class EncoderBlock(nn.Module):
    """A pre-activation residual block (arXiv:1603.05027) with instance normalization.

    Args:
        in_channels: feature maps of the input.
        out_channels: feature maps of the output.
        halves: halve the side.
        normalizes: normalize each feature map of each image before the activations.
    """

    def __init__(self, in_channels: int, out_channels: int, *, halves: bool, normalizes: bool = True) -> None:
        super().__init__()
        self.halves, self.normalizes = halves, normalizes
        self.first = conv(in_channels, in_channels, 3)
        self.second = conv(in_channels, out_channels, 3)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o _k _l"]:
        h = self.first(self._active(x))
        if self.halves:
            h, x = downsample(h), downsample(x)
        return (self.second(self._active(h)) + self.skip(x)) * 0.5**0.5

    def _active(self, x: Tensor) -> Tensor:
        return F.leaky_relu(instance_norm(x) if self.normalizes else x, SLOPE)


class DecoderBlock(nn.Module):
    """A pre-activation residual block with adaptive instance normalization.

    Args:
        in_channels: feature maps of the input.
        out_channels: feature maps of the output.
        style_dim: size of the style vector.
        doubles: double the side.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.first_norm = AdaIN(in_channels, style_dim)
        self.first = conv(in_channels, out_channels, 3)
        self.second_norm = AdaIN(out_channels, style_dim)
        self.second = conv(out_channels, out_channels, 3)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b o _k _l"]:
        h = self.first(F.leaky_relu(self.first_norm(x, style), SLOPE))
        x = self.skip(x)
        if self.doubles:  # after the convolution, which costs a quarter on the smaller maps
            h, x = upsample(h), upsample(x)
        return (self.second(F.leaky_relu(self.second_norm(h, style), SLOPE)) + x) * 0.5**0.5


class AdaIN(nn.Module):
    """(1 + gain(style)) * (x - mean) / deviation + bias(style), for each feature map of each image."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.gain_and_bias = nn.Linear(style_dim, 2 * channels)
        nn.init.normal_(self.gain_and_bias.weight, std=0.5 * style_dim**-0.5)
        nn.init.zeros_(self.gain_and_bias.bias)

    def forward(
        self, x: Float[Tensor, "b c h w"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b c h w"]:
        gain, bias = self.gain_and_bias(style).to(x.dtype)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(bias, instance_norm(x), 1 + gain)


class StyleEncoder(nn.Module):
    """From an image and its domain to a style: residual blocks down to 4 px, without normalization.

    It is half as wide as the generator at each resolution, and its first convolution halves the side: a style
    needs less detail than an image.

    Args:
        channels: the generator's feature maps at each resolution.
        text_dim: size of the text encoder's vectors.
        style_dim: size of the style.
    """

    def __init__(self, channels: dict[int, int], text_dim: int, style_dim: int) -> None:
        super().__init__()
        smallest, side = next(iter(channels)), list(channels)[-1] // 2
        widths = []
        while side >= 4:
            widths.append(max(channels.get(side, channels[smallest]) // 2, 4))
            side //= 2
        self.first = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            EncoderBlock(a, b, halves=True, normalizes=False) for a, b in itertools.pairwise(widths)
        )
        self.head = StyleHead(widths[-1], text_dim, style_dim, layers=1)

    def forward(self, images: Images, pooled: Float[Tensor, "b c"]) -> Styles:
        x = self.first(images)
        for block in self.down:
            x = block(x)
        styles: Tensor = self.head(F.leaky_relu(x, SLOPE).mean((2, 3)), pooled)
        return styles


class StyleHead(nn.Module):
    """A style of variance 1 from a vector and a domain's caption: separate layers for both, then joint ones.

    Args:
        vector_dim: size of the vector; 0 for a style from the caption alone.
        text_dim: size of the text encoder's vectors.
        style_dim: size of the style.
        layers: layers from the vector alone.
    """

    def __init__(self, vector_dim: int, text_dim: int, style_dim: int, layers: int) -> None:
        super().__init__()
        hidden = 2 * style_dim
        sizes = [vector_dim, *[hidden] * layers] if vector_dim else [0]
        self.layers = nn.ModuleList(linear(a, b) for a, b in itertools.pairwise(sizes))
        self.text = linear(text_dim, hidden)
        self.join = linear(hidden + sizes[-1], hidden)
        self.out = linear(hidden, style_dim)
        self.activation = activation()

    def forward(self, vector: Float[Tensor, "b v"], pooled: Float[Tensor, "b c"]) -> Styles:
        x = vector
        for layer in self.layers:
            x = self.activation(layer(x))
        words = self.activation(self.text(pooled))
        x = self.activation(self.join(torch.cat([x, words], dim=1)))
        return F.layer_norm(self.out(x), (self.out.out_features,))
