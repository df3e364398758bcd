"""The interface of the metrics that validation computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

Images = UInt8[Tensor, "b 3 h w"]


class ImageMetric(ABC):
    """Compares generated images with real ones, over all processes together.

    Every process makes the same calls in the same order; `compute` returns the same numbers on all of them.
    A metric is not a submodule of the GAN: the weights of its extractors are not saved in checkpoints.
    """

    @property
    @abstractmethod
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that `compute` returns."""

    def prepare(self, fid_weights: str | None = None) -> str | None:
        """Load the networks that the metric needs, before training.

        Args:
            fid_weights: file with the weights of Inception, for scores that use it.

        Returns:
            None, or one line that says why the metric cannot be computed.
        """
        return None

    def needs_real(self, key: str) -> bool:
        """Whether real images must be given: False if their statistics are known already.

        Args:
            key: identifies the set of real images, including their resolution.
        """
        return True

    @abstractmethod
    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        """Add a batch of real or generated images."""

    @abstractmethod
    def compute(self, key: str) -> dict[str, float]:
        """Scores by name, over all processes."""

    @abstractmethod
    def reset(self) -> None:
        """Discard the generated images; statistics of the real ones are kept."""


class ExtendedImageMetric(ImageMetric):
    """A metric that may also need training images, and several generated images per caption."""

    @property
    @abstractmethod
    def sees_training(self) -> bool:
        """Whether the metric uses training images."""

    @abstractmethod
    def needs_training(self, key: str) -> int:
        """How many training images must be given on this process, before any other images.

        Args:
            key: identifies the set of training images and their resolution.
        """

    @abstractmethod
    def update_training(self, images: Images) -> None:
        """Add a batch of training images."""

    @abstractmethod
    def further_images_needed(self) -> int:
        """How many further images must be generated for each caption of the last batch."""

    @abstractmethod
    def update_further(self, images: Images) -> None:
        """Add one further image of each caption of the last batch; called `further_images_needed` times."""
