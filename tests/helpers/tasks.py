"""The pretext tasks, sized for `tests.helpers.training.tiny_gan`."""

from __future__ import annotations

from imagen_pl.losses.colorization import Colorization
from imagen_pl.losses.instance_discrimination import InstanceDiscrimination
from imagen_pl.losses.reconstruction import Reconstruction
from imagen_pl.losses.self_supervised import Rotation, SelfSupervisedTask

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
