"""The pretext tasks and all other losses, sized for `tests.helpers.training.tiny_gan`."""

from __future__ import annotations

from imagen_pl.losses.base import LossTerm
from imagen_pl.losses.colorization import Colorization
from imagen_pl.losses.instance_discrimination import InstanceDiscrimination
from imagen_pl.losses.interpolated_captions import InterpolatedCaptionLoss
from imagen_pl.losses.reconstruction import Reconstruction
from imagen_pl.losses.self_supervised import Rotation, SelfSupervisedTask
from imagen_pl.losses.text_matching import ImageTextContrastive, MismatchedCaptions
from tests.helpers.fakes import TinyBackbone

NAMES = ("rotation", "reconstruction", "colorization", "instance")


def tiny_task(name: str, share: float = 0.5, generator_weight: float = 0.5) -> SelfSupervisedTask:
    """One of `NAMES`, with a weight for both networks."""
    if name == "rotation":
        return Rotation(image_dim=8, share=share, generator_weight=generator_weight)
    if name == "reconstruction":
        return Reconstruction(8, finer_channels=4, width=8, share=share, generator_weight=generator_weight)
    if name == "colorization":
        return Colorization(map_channels=8, share=share, generator_weight=generator_weight)
    return InstanceDiscrimination(image_dim=8, embed_dim=8, share=share, generator_weight=generator_weight)


def tiny_tasks() -> list[SelfSupervisedTask]:
    """All of them."""
    return [tiny_task(name) for name in NAMES]


def tiny_matching() -> list[LossTerm]:
    """The terms that hold captions against images."""
    return [MismatchedCaptions(), ImageTextContrastive(image_dim=8, text_dim=16, embed_dim=8)]


def tiny_losses() -> list[LossTerm]:
    """Terms of every kind: matching, pretext tasks, and one that is fitted and generates images."""
    return [
        *tiny_matching(),
        *tiny_tasks(),
        InterpolatedCaptionLoss(TinyBackbone(), 32, text_dim=16, seen_dim=4, share=0.5, from_resolution=8),
    ]
