"""The interface of a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.types import EncodedBatch, Growth, TextFeatures


class Generator(nn.Module, ABC):
    """Generates images for captions.

    Attributes, set by the subclass:
        resolutions: every resolution it can grow through, px, from small to large.
        latent_dim: z, the size of the latent vector; entries are standard normal.
        text_dim: c, the size of the text features that it reads.
        image_channels: of one image: 3 for RGB, 4 for RGBA; of latents, those of the autoencoder.
        aspect_ratio: width of the images / their height.
        reads_images: whether it changes given images, as an ImageToImageGenerator does.
        images_per_sample: how many images `for_batch` gives of each sample in training, joined in channels.
        draws_latents: whether the discriminator compares latents of an autoencoder, as in a LatentGenerator.
        verb: the command of imagen-pl that draws with it.
        verb_arguments: what follows the model's name in an example of that command.
        init_from: model whose weights a new training starts from, for the parameters that both have; None
            starts from random weights.
    """

    resolutions: tuple[int, ...]
    latent_dim: int
    text_dim: int
    image_channels: int = 3
    aspect_ratio: float = 1.0
    reads_images: bool = False
    images_per_sample: int = 1
    draws_latents: bool = False
    verb: str = "sample"
    verb_arguments: str = "picture.png"
    init_from: str | None = None

    @abstractmethod
    def forward(
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
        guidance: float = 1.0,
        unconditional_text: TextFeatures | None = None,
    ) -> Float[Tensor, "b _c h w"]:
        """Images, about -1 to 1, at `growth.resolution` (None: the largest, fully grown).

        Args:
            z: latents.
            text: the captions.
            growth: how far the network has grown; blocks beyond it do not run.
            truncation: 0 to 1; less than 1 trades variety for typical images, by moving the latent's style
                towards its mean. The caption's part of the style is not truncated.
            guidance: 0 or more; 1 gives exactly the images without guidance, more follows the caption more
                closely, less follows it less. A generator without guidance leaves out this argument and the
                next.
            unconditional_text: features of one or more captions that describe nothing in particular, such
                as "" alone; guidance other than 1 moves from their style to that of `text` and beyond.

        Raises:
            ValueError: the resolution is unknown, or guidance is not 1 and `unconditional_text` is missing.
        """

    @property
    def drawn_channels(self) -> int:
        """Channels of a finished image."""
        return self.image_channels

    def for_batch(
        self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None
    ) -> Float[Tensor, "b _c h w"]:
        """Images that the discriminator compares with those of the batch: here, images for its captions.

        A generator may give several images of each sample, joined in channels; the last is the result.
        """
        return self(z, batch.text, growth)

    def like_generated(self, batch: EncodedBatch) -> Float[Tensor, "b _c _h _w"]:
        """The batch's real images in the form of those of `for_batch`: here, as they are."""
        return batch.images

    def to_latents(self, images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _k _h _w"] | None:
        """Latents of images (-1 to 1), where it draws latents; None where it draws images."""
        return None

    def from_latents(self, images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _k _h _w"]:
        """Finished images of what the discriminator compares: here, as they are."""
        return images

    def blocks(self) -> dict[int, nn.Module]:
        """The block that each resolution adds, by resolution; shared layers are in none of them.

        Empty for a generator that does not grow.
        """
        return {}

    def check_growth(self, growth: Growth | None) -> Growth:
        """`growth`, or fully grown where it is None. Raises ValueError if its resolution is unknown."""
        growth = growth or Growth(self.resolutions[-1])
        if growth.resolution not in self.resolutions:
            raise ValueError(f"resolution {growth.resolution} is not one of {self.resolutions}")
        return growth

    def track(self, z: Float[Tensor, "n z"]) -> None:
        """Update running statistics from the latents of all processes; called once a training step."""


class ImageToImageGenerator(Generator):
    """Changes given images, as an Upsampler or a Translator does; it draws nothing from a caption alone.

    In training and validation, `for_batch` makes its input of the batch's images.
    """

    reads_images = True

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b _c h w"]:
        raise UserError(f"{type(self).__name__} changes given images: use imagen-pl {self.verb}")

    @abstractmethod
    def rows_to_show(
        self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Rows of the grid of samples, by their labels."""
