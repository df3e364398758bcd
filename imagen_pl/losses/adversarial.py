"""Adversarial losses of generator and discriminator, one value a sample.

`a` stands for the discriminator's logits on real images, `b` for those on fakes; both are (b, k),
one column a head, and each loss is the mean over the heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "b k"]
PerSample = Float[Tensor, " b"]


class AdversarialLoss(ABC):
    """The losses of discriminator and generator, and a measure of how confident the discriminator is.

    Attributes:
        compares: whether the generator's loss needs the logits of real images too.
    """

    compares: bool = False

    @abstractmethod
    def discriminator(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        """The discriminator's loss."""

    @abstractmethod
    def generator(self, fake_logits: Logits, real_logits: Logits | None = None) -> PerSample:
        """The generator's loss; `real_logits` are given if `compares` is set."""

    def confidence(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        """-1 to 1: the measure of overfitting for adaptive augmentation (arXiv:2006.06676, eq. 1)."""
        return real_logits.sign().mean(1)


class NonSaturating(AdversarialLoss):
    """softplus(-a) + softplus(b); softplus(-b) (arXiv:1406.2661, section 3)."""

    def discriminator(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        return (F.softplus(-real_logits) + F.softplus(fake_logits)).mean(1)

    def generator(self, fake_logits: Logits, real_logits: Logits | None = None) -> PerSample:
        return F.softplus(-fake_logits).mean(1)


class Hinge(AdversarialLoss):
    """relu(1 - a) + relu(1 + b); -b (arXiv:1705.02894)."""

    def discriminator(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        return (F.relu(1 - real_logits) + F.relu(1 + fake_logits)).mean(1)

    def generator(self, fake_logits: Logits, real_logits: Logits | None = None) -> PerSample:
        return -fake_logits.mean(1)


class Wasserstein(AdversarialLoss):
    """b - a + drift a^2; -b (arXiv:1701.07875; the drift: arXiv:1710.10196, appendix A.1).

    Use it with `losses.gradient_penalties.WassersteinPenalty`.

    Args:
        drift: weight that keeps the logits of real images near zero.
    """

    def __init__(self, drift: float = 1e-3) -> None:
        self.drift = drift

    def discriminator(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        return (fake_logits - real_logits + self.drift * real_logits.square()).mean(1)

    def generator(self, fake_logits: Logits, real_logits: Logits | None = None) -> PerSample:
        return -fake_logits.mean(1)


class Relativistic(AdversarialLoss):
    """softplus(-(a - b)); softplus(-(b - a)), each fake paired with a real (R3GAN, arXiv:2501.05441, eq. 2).

    Only the difference of the logits matters, so the generator cannot drop a mode at no cost.

    Args:
        centring: weight of (a + b)^2 in the discriminator's loss, which keeps the logits near zero, where
            their difference alone would let them drift (arXiv:2511.22475, weight 0.01).
    """

    compares = True
    centring = 0.0  # of subclasses whose constructor does not call this one

    def __init__(self, centring: float = 0.0) -> None:
        if centring < 0:
            raise ValueError(f"Relativistic.centring {centring} must be 0 or more")
        self.centring = centring

    def discriminator(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        loss = F.softplus(fake_logits - real_logits)
        if self.centring:
            loss = loss + self.centring * (real_logits + fake_logits).square()
        return loss.mean(1)

    def generator(self, fake_logits: Logits, real_logits: Logits | None = None) -> PerSample:
        if real_logits is None:
            raise ValueError("the relativistic loss compares: give real_logits too")
        return F.softplus(real_logits - fake_logits).mean(1)

    def confidence(self, real_logits: Logits, fake_logits: Logits) -> PerSample:
        """The sign of the difference, since the zero of the logits alone has no meaning."""
        return (real_logits - fake_logits).sign().mean(1)
