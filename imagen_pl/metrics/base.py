"""What the system asks of a score of validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

Images = UInt8[Tensor, "b 3 h w"]


class ImageMetric(ABC):
    """Compares generated images with real ones, over all processes together.

    Every process makes the same calls in the same order; `compute` gives all of them the same numbers.
    It is no module of the system: what its extractors hold is not saved with checkpoints.
    """

    @property
    @abstractmethod
    def scores(self) -> tuple[str, ...]:
        """Names of what `compute` gives."""

    def prepare(self, fid_weights: str | None = None) -> str | None:
        """Load what is needed, before training; None, or one line that says why it cannot be scored.

        Args:
            fid_weights: file with the weights of Inception, for scores that are made with it.
        """
        return None

    def needs_real(self, key: str) -> bool:
        """Whether real images must be given: False where their statistics are known already.

        Args:
            key: stands for the set of real images, their resolution among the rest.
        """
        return True

    @abstractmethod
    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        """Take in a batch of real or generated images."""

    @abstractmethod
    def compute(self, key: str) -> dict[str, float]:
        """Scores by name, over all processes."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the generated images."""


class ExtendedImageMetric(ImageMetric):
    """One that may want to see images of training too, and several pictures of a caption."""

    @property
    @abstractmethod
    def sees_training(self) -> bool:
        """Whether it asks for images of training."""

    @abstractmethod
    def needs_training(self, key: str) -> int:
        """How many images of training must be given to this process, before all others.

        Args:
            key: stands for the set of training images and their resolution.
        """

    @abstractmethod
    def update_training(self, images: Images) -> None:
        """Take in images of training."""

    @abstractmethod
    def needs_again(self) -> int:
        """How many further pictures of each caption of the last batch must be given."""

    @abstractmethod
    def update_again(self, images: Images) -> None:
        """Take in a further picture of each caption of the last batch, as often as `needs_again` says."""
