"""The interface of a discriminator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.types import Growth, TextFeatures, width_of


@dataclass
class ImageFeatures:
    """A discriminator's features of a batch of images, which do not depend on the captions.

    maps: feature maps (b, c, h, w) by their height h, from large to small.
    final: one vector an image.
    frozen: feature maps of its frozen backbone, fine to coarse; empty where it has none.
    """

    maps: dict[int, Float[Tensor, "b c h w"]]
    final: Float[Tensor, "b f"]
    frozen: list[Float[Tensor, "b _c _h _w"]] = field(default_factory=list, kw_only=True)

    def detach(self) -> ImageFeatures:
        """The same features, those of a subclass included, without their autograd graph."""
        return replace(self, **{each.name: _detached(getattr(self, each.name)) for each in fields(self)})


def _detached(value: Any) -> Any:
    if isinstance(value, (Tensor, ImageFeatures)):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(each) for key, each in value.items()}
    return [_detached(each) for each in value]


class Discriminator(nn.Module, ABC):
    """Scores whether images are real and match their captions.

    It works in two steps, `extract_features` and `logits`, so that one forward pass over the images serves
    several captions (the image's own and a mismatched one) and several losses.

    Attributes, set by the subclass:
        resolutions: every resolution it can grow through, px, from small to large.
        text_dim: c, the size of the text features that it reads.
        final_dim: f, the size of `ImageFeatures.final`.
        image_channels: of one image: 3 for RGB, 4 for RGBA; of latents, those of the autoencoder.
        aspect_ratio: width of the images / their height.
        penalizable: whether gradient penalties can act on the gradients of `penalized_logits`.
        why_not_penalizable: the reason, for the error message, where they cannot.
        images_per_sample: how many images of each sample it reads, joined in channels.
        map_channels: c of each of `ImageFeatures.maps`, by its resolution; empty where there are no maps.
        frozen_channels: c of each of `ImageFeatures.frozen`; empty without a frozen backbone.
    """

    resolutions: tuple[int, ...]
    text_dim: int
    final_dim: int
    image_channels: int = 3
    aspect_ratio: float = 1.0
    penalizable: bool = True
    why_not_penalizable: str = "reads a frozen network, whose gradients no penalty can lower"
    images_per_sample: int = 1
    map_channels: Mapping[int, int] = MappingProxyType({})
    frozen_channels: Sequence[int] = ()

    @abstractmethod
    def extract_features(
        self, images: Float[Tensor, "b _c h w"], growth: Growth | None = None
    ) -> ImageFeatures:
        """Features of images (-1 to 1) at `growth.resolution` (None: the largest, fully grown)."""

    @abstractmethod
    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b k"]:
        """Logits, one column a head: larger means more real and a better fit to the caption."""

    def forward(
        self, images: Float[Tensor, "b _c h w"], text: TextFeatures, growth: Growth | None = None
    ) -> Float[Tensor, "b k"]:
        """`extract_features`, then `logits`."""
        return self.logits(self.extract_features(images, growth), text)

    def penalized_logits(
        self, images: Float[Tensor, "b _c h w"], text: TextFeatures, growth: Growth | None = None
    ) -> Float[Tensor, "b k"]:
        """The logits that gradient penalties differentiate: all, unless a part reads frozen features."""
        return self(images, text, growth)

    def check_growth(self, images: Float[Tensor, "b _c h w"], growth: Growth | None) -> Growth:
        """`growth`, or fully grown where it is None. Raises ValueError unless the images have that size."""
        growth = growth or Growth(self.resolutions[-1])
        height, width = images.shape[-2:]
        if (height, width) != (growth.resolution, width_of(growth.resolution, self.aspect_ratio)):
            size = f"{height}" if width == height else f"{width} x {height}"
            ratio = "" if self.aspect_ratio == 1 else f", aspect ratio {self.aspect_ratio:g}"
            raise ValueError(f"images of {size} px were given at growth {growth.resolution} px{ratio}")
        if growth.resolution not in self.resolutions:
            raise ValueError(f"resolution {growth.resolution} is not one of {self.resolutions}")
        return growth

    def blocks(self) -> dict[int, nn.Module]:
        """The block that each resolution adds, by resolution; shared layers are in none of them.

        Empty for a discriminator that does not grow.
        """
        return {}
