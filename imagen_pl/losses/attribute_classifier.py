"""Classification of the attributes that captions name after the subject, as "outline" in "bell, outline".

Axes: b batch, f features of an image, k attributes, c classes.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from imagen_pl.data.batch_samplers import attributes_of
from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_size
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.schedules import Schedule

_NONE = -1  # the class of an attribute that a caption does not name


class AttributeClassifier(LossTerm):
    """A classifier on the discriminator's features recognises attributes (AC-GAN, arXiv:1610.09585).

    It is for captions of a subject and attributes after commas, as "bell, Tabler Icons, outline". Attributes
    are counted from the end, and each place has a head of its own. Of icons the last attribute is the kind,
    or the set where it names no kind; the one before it is the set. The loss is the mean cross-entropy of the
    attributes that a caption names; it is 0 for a subject alone. As in StarGAN (arXiv:1711.09020, equations 2
    and 3) the classifier is trained on real images, and the generator so that its images are classified as
    their captions say.

    The class of an attribute is a hash of its words, so that no list of them is needed.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        attributes: how many are classified, counted from the end of a caption.
        classes: number of classes of each. Take some ten times the number of different words, so that few
            share a class.
        discriminator_weight: factor in the discriminator's loss, on real images.
        generator_weight: factor in the generator's loss, on generated images.
        from_resolution: resolution, px, below which the term is skipped.
    """

    name = "attributes"
    reads_pixels = False

    def __init__(
        self,
        image_dim: int = 256,
        attributes: int = 2,
        classes: int = 2048,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 1.0,
        from_resolution: int = 4,
    ) -> None:
        super().__init__(discriminator_weight, generator_weight, from_resolution)
        for argument, value in (("attributes", attributes), ("classes", classes)):
            if value < 1:
                raise UserError(f"{type(self).__name__}.{argument} {value} must be 1 or more")
        self.heads = nn.ModuleList(nn.Linear(image_dim, classes) for _ in range(attributes))
        self.image_dim, self.classes = image_dim, classes

    def check(self, discriminator: Discriminator) -> None:
        whose = "the discriminator's final_dim"
        check_size(self, "image_dim", self.image_dim, discriminator.final_dim, whose)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        features = inputs.features.final
        wanted = attribute_classes(inputs.captions, len(self.heads), self.classes).to(features.device)
        logits = torch.stack([head(features).float() for head in self.heads], dim=2)  # b c k
        losses = F.cross_entropy(logits, wanted, reduction="none", ignore_index=_NONE)
        named = wanted != _NONE
        for place in range(len(self.heads)):
            right = (logits[..., place].argmax(1) == wanted[:, place])[named[:, place]]
            if len(right):
                self.note(f"accuracy_{place + 1}", right.float().mean())
        return losses.sum(1) / named.sum(1).clamp(min=1)


def attribute_classes(captions: list[str], attributes: int, classes: int) -> Int64[Tensor, "b k"]:
    """The classes of the last attributes of each caption, the very last first; -1 where there is none."""
    found = torch.full((len(captions), attributes), _NONE)
    for row, caption in enumerate(captions):
        named = [part.strip() for part in attributes_of(caption).split(",") if part.strip()]
        for place, attribute in enumerate(reversed(named[-attributes:])):
            found[row, place] = _class(attribute, classes)
    return found


def _class(attribute: str, classes: int) -> int:
    digest = hashlib.blake2b(attribute.lower().encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % classes
