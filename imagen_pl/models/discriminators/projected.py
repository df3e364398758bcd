"""A discriminator on the features of a frozen network (Projected GAN, arXiv:2111.01007).

The maps of a backbone are mixed by fixed random convolutions, across channels and then from coarse to fine,
so that no single feature is easy to fool. Each mixed map has a small head, which reads the caption by
projection as in StyleGAN-T (arXiv:2301.09515).

Axes: b batch, c channels, h w positions in a map, or pixels, s pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.discriminators.multiscale import ProjectionHead, append_stddev
from imagen_pl.models.layers.initialisation import activation, conv, linear
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.types import Growth, TextFeatures

_TRIALS = 16  # images that the maps' sizes are measured on


@dataclass
class ProjectedFeatures(ImageFeatures):
    """head_features: one vector per head and image, before the captions enter; fine to coarse."""

    head_features: list[Float[Tensor, "b _w"]]


class ProjectedDiscriminator(Discriminator):
    """Scores images of any resolution by the features of a frozen network.

    Images are resized to the backbone's input size, so nothing grows here. Most of the gradient with regard
    to pixels comes from the frozen network, which a gradient penalty cannot change: this discriminator takes
    none, and `spectral_norm` keeps its heads smooth.

    Args:
        backbone: the frozen network. Do not evaluate the model on features of the same network.
        resolutions: of the run, px, from small to large.
        text_dim: size of the text encoder's vectors.
        final_dim: size of the vector that summarises an image.
        max_channels: upper limit of a mixed map's channels; below it, a map keeps its number of channels.
        head_channels: width of the heads.
        spectral_norm: normalise the heads' convolutions to a spectral norm of one (arXiv:1802.05957). Their
            last layers are not normalised: if they are, the heads hardly learn the captions.
        minibatch_stddev: images per group whose standard deviation becomes a further map of each head's input
            (arXiv:1710.10196, section 3); 0 switches it off. With data.pictures_per_caption the groups are
            images of one caption.
        seed: of the fixed mixing, which is saved with the weights.
        image_channels: of the images: 3, or 4 for RGBA, which the backbone sees on white.
        aspect_ratio: width of the images / their height; the backbone sees them stretched to its square.
    """

    penalizable = False

    def __init__(
        self,
        backbone: Backbone,
        resolutions: list[int],
        text_dim: int = 384,
        final_dim: int = 256,
        max_channels: int = 256,
        head_channels: int = 64,
        spectral_norm: bool = True,
        minibatch_stddev: int = 0,
        seed: int = 0,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if image_channels not in (3, 4):
            raise ValueError(
                f"ProjectedDiscriminator.image_channels {image_channels} must be 3, or 4 for RGBA"
            )
        self.image_channels, self.aspect_ratio = image_channels, aspect_ratio
        if not resolutions or sorted(set(resolutions)) != list(resolutions):
            raise ValueError(f"resolutions {resolutions} must be those of the run, from small to large")
        self.backbone = backbone  # no module: its weights are not ours
        self.frozen_channels = backbone.channels
        self.resolutions = tuple(resolutions)
        self.text_dim, self.final_dim = text_dim, final_dim
        self.mixing = FixedMixing(backbone, max_channels, seed)
        widths = self.mixing.widths
        self.map_channels = dict(zip(self.mixing.sides, widths, strict=True))
        self.minibatch_stddev = minibatch_stddev
        self.heads = nn.ModuleList(
            ScaleHead(width + (minibatch_stddev > 0), head_channels, text_dim) for width in widths
        )
        self.to_final = linear(sum(widths), final_dim)
        self.activation = activation()
        if spectral_norm:
            for module in self.heads.modules():
                if isinstance(module, nn.Conv2d):
                    parametrizations.spectral_norm(module)

    def blocks(self) -> dict[int, nn.Module]:
        return {}

    def extract_features(
        self, images: Float[Tensor, "b _c h w"], growth: Growth | None = None
    ) -> ProjectedFeatures:
        self.check_growth(images, growth)
        frozen = self.backbone(images)
        scales = self.mixing(frozen)
        means = torch.cat([x.mean((2, 3)) for x in scales], dim=1)
        maps = dict(zip(self.mixing.sides, scales, strict=True))
        if self.minibatch_stddev:
            scales = [append_stddev(x, self.minibatch_stddev) for x in scales]
        head_features = [head.extract_features(x) for head, x in zip(self._heads, scales, strict=True)]
        return ProjectedFeatures(maps, self.activation(self.to_final(means)), head_features, frozen=frozen)

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b k"]:
        assert isinstance(features, ProjectedFeatures)
        logits = [
            head.logits(x, text.pooled) for head, x in zip(self._heads, features.head_features, strict=True)
        ]
        return at_least_float32(torch.stack(logits, dim=1))

    @property
    def _heads(self) -> list[ScaleHead]:
        return [head for head in self.heads if isinstance(head, ScaleHead)]


class FixedMixing(nn.Module):
    """Random, fixed mixing across channels and scales (arXiv:2111.01007, section 3.2).

    y_l = A_l x_l / rms_l, then from the coarsest to the finest m_l = (y_l + B_l up(m_(l+1))) / sqrt(2). Each
    map is first brought to a mean square near one, as measured on smooth random images.

    Args:
        backbone: the network whose maps are mixed.
        max_channels: upper limit of a mixed map's channels; below it, a map keeps its number of channels.
        seed: of A and B.

    Attributes:
        widths: channels of each mixed map, fine to coarse.
        sides: height and width of each map; they follow from the backbone's input size.
    """

    def __init__(self, backbone: Backbone, max_channels: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        coarse = torch.rand(_TRIALS, 3, 4, 4, generator=draw) * 2 - 1
        size = backbone.size
        images = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
        with torch.no_grad():
            maps = backbone(images)
        self.sides = [x.shape[-1] for x in maps]
        self.widths = [min(x.shape[1], max_channels) for x in maps]
        for i, (x, width) in enumerate(zip(maps, self.widths, strict=True)):
            rms = x.square().mean().sqrt().clamp_min(1e-6)
            self.register_buffer(f"channels_{i}", _random(width, x.shape[1], 1, draw) / rms)
            if i + 1 < len(maps):
                self.register_buffer(f"scales_{i}", _random(width, self.widths[i + 1], 3, draw))

    def forward(self, maps: list[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b m h w"]]:
        """Mixed maps, in the order of the maps."""
        mixed: list[Tensor] = []
        for i in reversed(range(len(maps))):
            y = F.conv2d(maps[i], self.get_buffer(f"channels_{i}"))
            if mixed:
                coarser = F.interpolate(mixed[-1], y.shape[2:], mode="bilinear", align_corners=False)
                y = (y + F.conv2d(coarser, self.get_buffer(f"scales_{i}"), padding=1)) * 0.5**0.5
            mixed.append(y)
        return mixed[::-1]


class ScaleHead(nn.Module):
    """One logit from a feature map and a caption."""

    def __init__(self, channels: int, width: int, text_dim: int) -> None:
        super().__init__()
        self.enter = conv(channels, width, 1)
        self.residual = conv(width, width, 3)
        self.activation = activation()
        self.head = ProjectionHead(width, text_dim)

    def extract_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        """All but the projection, so that several captions can share it."""
        x = self.activation(self.enter(x))
        x = (x + self.activation(self.residual(x))) * 0.5**0.5
        # The head is linear from here on, so averaging the positions first gives the same logit. `avg_pool2d`
        # and not `mean`, whose gradient on CPUs has another memory layout and slows down the layers before.
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)

    def logits(self, features: Float[Tensor, "b width"], pooled: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """One logit an image."""
        logits: Tensor = self.head(features, pooled)
        return logits


def _random(
    out_channels: int, in_channels: int, kernel: int, draw: torch.Generator
) -> Float[Tensor, "o i k k"]:
    """Weights that keep the mean square (arXiv:1502.01852, without an activation)."""
    weight = torch.randn(out_channels, in_channels, kernel, kernel, generator=draw)
    return weight * (in_channels * kernel**2) ** -0.5
