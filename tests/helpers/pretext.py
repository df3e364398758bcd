"""A discriminator with given features, and images for the pretext tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.colorization import Colorization
from imagen_pl.losses.instance_discrimination import InstanceDiscrimination
from imagen_pl.losses.reconstruction import Reconstruction
from imagen_pl.losses.self_supervised import Rotation, SelfSupervisedTask
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.networks import small_discriminator, text_features

SIDE, MAPS = 16, 16


class Sees(Discriminator):
    """Features from a function; records its inputs."""

    resolutions, text_dim, final_dim = (8, 16), 6, 4

    def __init__(self, see: Callable[[Tensor], ImageFeatures]) -> None:
        super().__init__()
        self.see = see
        self.inputs: list[Tensor] = []

    def extract_features(self, images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        self.inputs.append(images)
        return self.see(images)

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Tensor:
        return features.final[:, :1]

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def pyramid(images: Tensor) -> ImageFeatures:
    """The image itself as its maps, and its corners' first channel as its vector."""
    corners = images[:, 0, [0, 0, -1, -1], [0, -1, -1, 0]]
    return ImageFeatures({16: images, 8: F.avg_pool2d(images, 2)}, corners)


def shown(discriminator: Discriminator, images: Tensor) -> LossInputs:
    growth = Growth(images.shape[-1])
    seen = discriminator.extract_features(images, growth)
    return LossInputs(images, seen, text_features(len(images)), growth)


def ask(task: SelfSupervisedTask, discriminator: Discriminator, images: Tensor) -> Tensor:
    return task(discriminator, NonSaturating(), shown(discriminator, images))


def noise(count: int = 8, side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def eight_pictures() -> Tensor:
    """A coloured disc on a coloured ground each; all differ, also when rotated."""
    colours = torch.rand(2, 8, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y, x = torch.linspace(-1, 1, SIDE)[:, None], torch.linspace(-1, 1, SIDE)[None]
    discs = [(y + 0.5) ** 2 + (x - 0.6 + i / 10) ** 2 < 0.1 + 0.04 * i for i in range(8)]
    return torch.where(torch.stack(discs)[:, None], colours[0], colours[1])


def task_for(name: str, share: float = 1.0) -> SelfSupervisedTask:
    """Sized for `learner`."""
    torch.manual_seed(3)
    tasks = {
        "rotation": lambda: Rotation(MAPS, share),
        "reconstruction": lambda: Reconstruction(MAPS, MAPS, image_resolution=SIDE, width=16, share=share),
        "colorization": lambda: Colorization(MAPS, map_resolution=4, share=share),
        "instance": lambda: InstanceDiscrimination(MAPS, 8, share=share),
    }
    return tasks[name]()


def learner() -> Discriminator:
    return small_discriminator(
        {4: MAPS, 8: MAPS, 16: MAPS}, final_dim=MAPS, heads_at=[], self_attention_at=[]
    )
