"""Caption loss: a captioner trained on real images scores how well generated images show their captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, distributed

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, PerSample, SeparatelyTrainedLoss
from imagen_pl.losses.similar_captions import SimilarCaptions
from imagen_pl.models.augment import Augment
from imagen_pl.models.captioner.model import Captioner, evaluating
from imagen_pl.models.captioner.weights import load_weights
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.schedules import Schedule

log = logging.getLogger(__name__)

# Least margin of a useful captioner: nats a token by which shuffled captions are less likely than own ones.
_CLEARLY = 0.1
# Steps of the captioner before the margin is tested, and the length of the margin's moving average, steps.
_TRUSTED, _AVERAGED = 20, 50


class Captioning(SeparatelyTrainedLoss):
    """L_NLG: cross-entropy of the caption, given the image, by a captioner (MirrorGAN, arXiv:1903.05854).

    The captioner is trained on real pairs. In the generator's step the captioner is frozen, and the generator
    is trained to make the caption likely: L_NLG = -1/T sum_t log p(w_t | w_<t, G(z, w)).

    Three logged numbers show whether the loss is useful: train/caption_ce on real pairs,
    train/caption_ce_shuffled on real images with captions of other images of the batch, and
    train/g_caption_ce_unweighted on generated images. If the first two are nearly equal, the captioner
    ignores the image and its gradients do not help the generator; the run prints a warning.

    Args:
        captioner: the network.
        optimizer: makes the captioner's optimizer, for example `torch.optim.AdamW`.
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen, so that the
            captioner can be trained first; 0 skips the term.
        from_resolution: resolution, px, below which the generator's loss skips the term.
        every: train the captioner on every nth batch.
        share: share of a batch's images that both losses are computed on, the captioner's and the
            generator's, above 0 to 1; the cost is proportional to it.
        captioner_from: folder of a trained captioner (`imagen-pl fit-captioner`) with the same settings, from
            which weights and tokens are loaded; None starts from random weights.
        freeze: do not train the captioner; needs `captioner_from`.
        contrast: weight of a contrastive term in the generator's loss; the cross-entropy has weight 1. It is
            log(1 + p(v|x) / p(w|x)) for a generated image x, its caption w, and a caption v of the training
            set that differs from w in one word, as "bell off" from "bell" (similar_captions.py); v is drawn
            anew in each step. 0 turns it off. train/g_caption_ce_prefers_own is the share of generated
            images for which w is likelier than v.
        augment: augmentation of the real and generated images that the captioner reads, for example
            NoisyViews; a frozen captioner must have been trained with it. None turns it off.
        copies: augmented copies of each generated image; their gradients are averaged, which keeps what
            they have in common. More than 1 needs `augment`.
    """

    name = "caption_ce"
    averages: Float[Tensor, "2"]
    measured: Float[Tensor, ""]

    def __init__(
        self,
        captioner: Captioner,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        generator_weight: float | Schedule = 1.0,
        from_resolution: int = 4,
        every: int = 1,
        share: float = 1.0,
        captioner_from: str | None = None,
        freeze: bool = False,
        contrast: float = 0.0,
        augment: Augment | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__(optimizer, generator_weight, from_resolution, every)
        if freeze and captioner_from is None:
            raise UserError("captioning.freeze needs a trained captioner: name one in captioner_from")
        if not 0 < share <= 1:
            raise UserError(f"captioning.share {share} must be above 0 and at most 1")
        if contrast < 0:
            raise UserError(f"captioning.contrast {contrast} must be 0 or more")
        if copies < 1 or (copies > 1 and augment is None):
            raise UserError(f"captioning.copies {copies} must be 1, or more together with captioning.augment")
        if augment is not None and captioner.features.needs_discriminator:
            raise UserError("captioning.augment needs a captioner with its own image features")
        self.share, self.contrast, self.augment, self.copies = share, contrast, augment, copies
        self.similar = SimilarCaptions(())
        self.needs_features = self.needs_plain_images = captioner.features.needs_discriminator
        self.captioner, self.captioner_from, self.freeze = captioner, captioner_from, freeze
        if freeze:
            captioner.requires_grad_(False)
        # Buffers, so that a resumed run tests the captioner on the same averages as an uninterrupted run.
        self.register_buffer("averages", torch.zeros(2))  # cross-entropy, own captions and shuffled
        self.register_buffer("measured", torch.zeros(()))
        self._warned = False

    def check(self, discriminator: Discriminator) -> None:
        self.captioner.features.check(discriminator.map_channels)

    def prepare(self, captions: Callable[[], Iterable[str]]) -> None:
        if self.contrast:
            self.similar = SimilarCaptions(captions())
            if self.similar.none_found:
                log.warning("captioning.contrast has no effect: no caption differs from another in one word")
        if self.captioner_from is None:
            self.captioner.prepare(captions)
        else:
            load_weights(self.captioner, self.captioner_from)

    def training_loss(self, inputs: LossInputs) -> PerSample:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            memory, captions = self._image_features(inputs)
            loss = self.captioner.cross_entropy(memory, captions)
        self._measure(memory.detach(), captions, loss.detach())
        return loss

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        self._warn_if_it_teaches_nothing()
        with evaluating(self.captioner):
            memory, captions = self._image_features(inputs, self.copies)
            loss = self.captioner.cross_entropy(memory, captions)
            self.note("unweighted", loss.mean())
            if self.contrast:
                loss = loss + self.contrast * self._contrast(memory, captions)
        return loss.view(self.copies, -1).mean(0)

    def _contrast(self, memory: Float[Tensor, "b m d"], captions: list[str]) -> PerSample:
        """log(1 + p(v | x) / p(w | x)) of each image x, with v a similar caption; 0 where there is none."""
        draws = torch.rand(len(captions), 2).tolist()
        others = [self.similar.draw(caption, *draw) for caption, draw in zip(captions, draws, strict=True)]
        if not any(others):
            return memory.new_zeros(len(captions))
        own = self.captioner.log_likelihood(memory, captions)
        other = self.captioner.log_likelihood(
            memory, [text or caption for text, caption in zip(others, captions, strict=True)]
        )
        has = torch.tensor([text is not None for text in others], device=own.device)
        self.note("prefers_own", (own > other)[has].float().mean())
        return F.softplus(other - own) * has

    def _image_features(
        self, inputs: LossInputs, copies: int = 1
    ) -> tuple[Float[Tensor, "n m d"], list[str]]:
        """Features of `copies` of the first `share` of the images, copy after copy, and their captions."""
        rows = slice(max(round(self.share * len(inputs.images)), 1))
        maps = {resolution: found[rows] for resolution, found in inputs.features.maps.items()}
        images, captions = inputs.images[rows], inputs.captions[rows]
        if self.augment is not None:
            images = self.augment(images.repeat(copies, 1, 1, 1))
        return self.captioner.extract_features(images, maps), captions * copies

    @torch.no_grad()
    def _measure(self, memory: Float[Tensor, "b m d"], captions: list[str], own: PerSample) -> None:
        """Average the cross-entropies of own and shuffled captions; a part of a batch is enough."""
        rows = len(own) if len(own) < 16 else len(own) // 4
        if rows < 2:
            return  # one image has no other caption
        shuffled = self.captioner.cross_entropy(memory[:rows].roll(1, 0), captions[:rows])
        said = (shuffled > 0).sum().clamp(min=1)  # empty captions have no loss
        means = torch.stack([own[:rows].sum(), shuffled.sum()]) / said
        self.measured += 1
        self.averages += (means - self.averages) / self.measured.clamp(max=_AVERAGED)
        self.note("shuffled", means[1])

    def _warn_if_it_teaches_nothing(self) -> None:
        if self._warned or self.measured < _TRUSTED:
            return
        own, shuffled = self.averages.tolist()
        if shuffled - own >= _CLEARLY:
            return
        self._warned = True
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
            return
        log.warning(
            "captioning: real images fit their own captions (train/caption_ce %.2f) hardly better than "
            "others' (train/caption_ce_shuffled %.2f), so the captioner teaches the generator nothing: let "
            "generator_weight "
            "begin later, or train it first (imagen-pl fit-captioner) and name it in captioner_from",
            own,
            shuffled,
        )
