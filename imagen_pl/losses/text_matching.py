"""Losses that make images follow their captions: an image should fit its own caption and no other.

The mismatched captions are others of the same batch, so these terms couple the samples of a batch; under
DDP each process uses its own batch alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_size, mean_of_each
from imagen_pl.losses.similar_captions import SimilarCaptions
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.schedules import Schedule

log = logging.getLogger(__name__)


def caption_ids(inputs: LossInputs) -> Int64[Tensor, " b"]:
    """A number for each row, the same for rows with the same caption; on the CPU."""
    if not inputs.captions:
        return torch.arange(len(inputs.text))
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in inputs.captions])


class MismatchedCaptions(LossTerm):
    """A real image with a mismatched caption counts as fake (GAN-CLS, arXiv:1605.05396, algorithm 1).

    The loss is the adversarial loss of the discriminator, with the matching pair as the real and the
    mismatched pair as the fake. The mismatched caption is that of the previous row; the loss is 0 where the
    two captions are the same.

    Args:
        discriminator_weight: factor in the discriminator's loss.
        generator_weight: factor in the generator's loss, on generated images.
        from_resolution: resolution, px, below which the term is skipped.
        nearest: as the mismatched caption take the most similar other one of the batch, by the cosine of the
            text vectors. It is a hard negative as in VSE++ (arXiv:1707.05612), which picks it by its
            similarity to the image instead. With data.own_captions it can differ in the kind alone, as
            "bell, filled" from "bell, outline".
        similar: the share of images, 0 to 1, whose mismatched caption is drawn from the captions of the
            training set that differ from their own in one word, such as "bell off" for "bell" (the rule is in
            similar_captions.py). Images without such a caption have one of the batch, as above.
    """

    name = "mismatch"
    reads_pixels = False

    def __init__(
        self,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.0,
        from_resolution: int = 4,
        nearest: bool = False,
        similar: float = 0.0,
    ) -> None:
        super().__init__(discriminator_weight, generator_weight, from_resolution)
        if not 0 <= similar <= 1:
            raise UserError(f"MismatchedCaptions.similar {similar} must be from 0 to 1")
        self.nearest, self.similar = nearest, similar
        self.similar_captions = SimilarCaptions(())

    def prepare(self, captions: Callable[[], Iterable[str]]) -> None:
        if self.similar:
            self.similar_captions = SimilarCaptions(captions())
            if self.similar_captions.none_found:
                log.warning(
                    "MismatchedCaptions.similar has no effect: no caption differs from another in one word"
                )

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        ids = caption_ids(inputs)
        if self.nearest:
            others = nearest_others(inputs.text.pooled, ids.to(inputs.text.pooled.device))
            equal = (ids[:, None] == ids).all()
        else:
            others = torch.arange(len(ids), device=inputs.text.pooled.device).roll(1)
            equal = ids == ids.roll(1)
        matched = discriminator.logits(inputs.features, inputs.text)
        text, drawn = inputs.text[others], self._draw_similar(inputs)
        if inputs.encode is not None and any(drawn):
            texts = [each or inputs.captions[i] for each, i in zip(drawn, others.tolist(), strict=True)]
            text = inputs.encode(texts)
            equal = equal.cpu() & ~torch.tensor([bool(each) for each in drawn])
        mismatched = discriminator.logits(inputs.features, text)
        loss = adversarial.discriminator(matched, mismatched)
        return loss.masked_fill(equal.to(loss.device), 0.0) if equal.any() else loss

    def _draw_similar(self, inputs: LossInputs) -> list[str | None]:
        """For a share of the rows, at random, a caption that differs from theirs in one word."""
        if not self.similar:
            return []
        draws = torch.rand(len(inputs.captions), 3).tolist()
        return [
            self.similar_captions.draw(caption, first, second) if chosen < self.similar else None
            for caption, (chosen, first, second) in zip(inputs.captions, draws, strict=True)
        ]


def nearest_others(vectors: Float[Tensor, "b c"], ids: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """For each row the row with another caption whose vector is nearest by the cosine.

    Args:
        vectors: of the captions.
        ids: the same number for rows with the same caption.

    Returns:
        Their places; 0 for all rows where all captions are the same.
    """
    directions = F.normalize(vectors.float(), dim=1)
    equal = ids[:, None] == ids
    return (directions @ directions.T).masked_fill(equal, -torch.inf).argmax(1)


class ImageTextContrastive(LossTerm):
    """Match images and captions within the batch (InfoNCE both ways, CLIP, arXiv:2103.00020).

    Samples with the same caption are not negatives of each other.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        text_dim: size of the text encoder's vectors.
        embed_dim: size of the joint embedding space.
        temperature: initial value of the learned temperature.
        discriminator_weight: factor in the discriminator's loss, on real images.
        generator_weight: factor in the generator's loss, on generated images.
        negatives: number of earlier training captions that images are compared with, beside those of the
            batch. They are kept in a queue (MoCo, arXiv:1911.05722, section 3.2). Small batches have few
            captions, above all with data.pictures_per_caption. Each process has a queue of its own.
    """

    name = "contrastive"
    reads_pixels = False

    def __init__(
        self,
        image_dim: int = 256,
        text_dim: int = 384,
        embed_dim: int = 128,
        temperature: float = 0.1,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 1.0,
        negatives: int = 0,
    ) -> None:
        super().__init__(discriminator_weight, generator_weight)
        if negatives < 0:
            raise UserError(f"{type(self).__name__}.negatives {negatives} must be 0 or more")
        self.image = nn.Linear(image_dim, embed_dim)
        self.text = nn.Linear(text_dim, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / temperature).log())
        self.queue = CaptionQueue(negatives, text_dim) if negatives else None

    def check(self, discriminator: Discriminator) -> None:
        image_dim, text_dim = self.image.in_features, self.text.in_features
        check_size(self, "image_dim", image_dim, discriminator.final_dim, "the discriminator's final_dim")
        check_size(self, "text_dim", text_dim, discriminator.text_dim, "the discriminator's text_dim")

    def vectors(self, inputs: LossInputs) -> Float[Tensor, "b f"]:
        """The feature vectors of the images."""
        return inputs.features.final

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        images = F.normalize(self.image(self.vectors(inputs)).float(), dim=1)
        captions = F.normalize(self.text(inputs.text.pooled).float(), dim=1)
        # The scale is at most 100, as in CLIP, so that one hard pair cannot blow up the loss.
        scale = self.log_scale.exp().clamp(max=100)
        similarity = images @ captions.T * scale
        ids = caption_ids(inputs)
        equal = (ids[:, None] == ids).fill_diagonal_(False)
        if equal.any():
            similarity = similarity.masked_fill(equal.to(similarity.device), -torch.inf)
        own = torch.arange(len(inputs.text), device=similarity.device)
        by_caption = F.cross_entropy(similarity.T, own, reduction="none")
        if self.queue is not None and inputs.captions:
            earlier = self.queue.vectors.clone()  # `add` overwrites them before the backward pass
            queued = images @ F.normalize(self.text(earlier).float(), dim=1).T * scale
            left_out = self.queue.left_out(inputs.captions)
            similarity = torch.cat([similarity, queued.masked_fill(left_out, -torch.inf)], dim=1)
            if inputs.generator is None:
                self.queue.add(inputs.captions, inputs.text.pooled)
        by_image = F.cross_entropy(similarity, own, reduction="none")
        return (by_image + by_caption) / 2


class CaptionQueue(nn.Module):
    """The text vectors of the last captions that were added, for more negatives than a batch has.

    Its buffers are saved in checkpoints, so that a resumed run has the same negatives.

    Args:
        size: captions that it holds.
        text_dim: size of a text vector.
    """

    vectors: Float[Tensor, "n c"]
    keys: Int64[Tensor, " n"]
    added: Int64[Tensor, ""]

    def __init__(self, size: int, text_dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, text_dim))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.long))
        self.register_buffer("added", torch.tensor(0))

    def left_out(self, captions: list[str]) -> Bool[Tensor, "b n"]:
        """For each row of a batch, the places that are no negatives: of its own caption, and empty ones."""
        keys = torch.tensor([_key(caption) for caption in captions], device=self.keys.device)
        empty = torch.arange(len(self.keys), device=self.keys.device) >= self.added
        return (keys[:, None] == self.keys) | empty

    @torch.no_grad()
    def add(self, captions: list[str], vectors: Float[Tensor, "b c"]) -> None:
        """Add each caption of a batch once, in place of the oldest; dropped captions ("") are not added."""
        first = {caption: i for i, caption in reversed(list(enumerate(captions))) if caption}
        rows = sorted(first.values())[: len(self.keys)]
        places = (self.added + torch.arange(len(rows), device=self.keys.device)) % len(self.keys)
        keys = torch.tensor([_key(captions[i]) for i in rows], dtype=torch.long, device=self.keys.device)
        self.vectors[places] = vectors[rows].to(self.vectors)
        self.keys[places] = keys
        self.added += len(rows)


def _key(caption: str) -> int:
    """A number for a caption that is the same in every process and run."""
    data = caption.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


class FeatureMatching(LossTerm):
    """A fake's discriminator features should equal those of the real image with the same caption.

    L1 over the feature maps and the final vector (pix2pixHD, arXiv:1711.11585, eq. 4), each divided by the
    real one's mean absolute value, so that all have equal weight. It suits data where each caption describes
    one image; where a caption fits many, it pulls towards their mean and reduces diversity.

    Args:
        generator_weight: factor in the generator's loss.
    """

    name = "feature_matching"
    reads_pixels = False
    needs_pairs = True

    def __init__(self, generator_weight: float | Schedule = 1.0) -> None:
        super().__init__(discriminator_weight=0.0, generator_weight=generator_weight)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.real_features is None:
            raise ValueError("feature matching compares: it needs inputs.real_features")
        terms = []
        for mine, theirs in zip(self._maps(inputs.features), self._maps(inputs.real_features), strict=True):
            size = theirs.abs().mean().clamp_min(1e-4)
            terms.append(mean_of_each((mine - theirs).abs()) / size)
        return torch.stack(terms).mean(0)

    @staticmethod
    def _maps(features: ImageFeatures) -> list[Float[Tensor, "b ..."]]:
        return [x.float() for x in (*features.maps.values(), features.final)]
