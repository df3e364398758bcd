"""How good captions are: BLEU-4, ROUGE-L and CIDEr, and whether an image's own caption fits it best.

Axes: b images, n captions that each is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.metrics.retrieval import Retrieval, of_ranks, other_of_same_style, sample_distractors

# A caption's cross-entropy is the same to so many nats, whatever it stands beside in a batch.
_SAME = 1e-5


@dataclass(frozen=True)
class CaptionScores:
    """How near captions come to what people wrote; more is better.

    bleu4: share of their runs of one to four words that are right, 0 to 1, less if they are too short, of all
        captions together (BLEU, Papineni et al. 2002).
    rouge_l: longest common run of words, gaps allowed, 0 to 1 (ROUGE-L, Lin 2004).
    cider: agreement in words that are rare in the references, 0 to 10 (CIDEr, arXiv:1411.5726). It depends on
        which references there are: compare on equal ones alone.
    exact: share that is a reference to the word.
    captions: how many were scored.
    """

    bleu4: float
    rouge_l: float
    cider: float
    exact: float
    captions: int


def words(caption: str) -> list[str]:
    """In lower case, punctuation apart: "Red heart, fluent" is red, heart, ",", fluent."""
    return re.findall(r"\w+|[^\w\s]", caption.lower())


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score captions by COCO's own code, after `words` has parted them.

    Args:
        captions: one an image.
        references: what people wrote of each image, one or more.

    Raises:
        UserError: the library is not installed.
    """
    if len(captions) != len(references) or len(captions) < 2:
        raise ValueError(
            f"{len(captions)} captions and {len(references)} references are not as many, or below 2"
        )
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ModuleNotFoundError:
        raise UserError("scores of captions need pycocoevalcap: pip install 'imagen_pl[captions]'") from None

    produced = {i: [" ".join(words(caption))] for i, caption in enumerate(captions)}
    wanted = {i: [" ".join(words(one)) for one in several] for i, several in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(wanted, produced, verbose=0)
    rouge, _ = Rouge().compute_score(wanted, produced)
    cider, _ = Cider().compute_score(wanted, produced)
    exact = sum(produced[i][0] in wanted[i] for i in produced) / len(produced)
    return CaptionScores(float(bleu[3]), float(rouge), float(cider), exact, len(produced))


def caption_retrieval(
    misfit: Callable[[int, Sequence[str]], Float[Tensor, " n"]],
    captions: Sequence[str],
    subjects: Sequence[Hashable],
    styles: Sequence[Hashable],
    *,
    seed: int = 0,
    distractors: int = 99,
    shuffled: bool = False,
) -> Retrieval:
    """Rank each image's own caption among captions of other subjects in the same style.

    Args:
        misfit: how badly captions fit an image, by its row: cross-entropy of a captioner. Of the image's own
            caption and the distractors, the one with the least is found; what fits as well counts as better.
        captions: of each image.
        subjects: of each image.
        styles: of each image.
        seed: of the distractors.
        distractors: how many.
        shuffled: look at another image of the same style: what is left is had without looking.

    Raises:
        UserError: a style holds too few subjects for so many distractors.
    """
    draw = np.random.default_rng(seed)
    sampled = sample_distractors(subjects, styles, distractors, draw)
    looked_at = list(range(len(captions)))
    if shuffled:
        looked_at = other_of_same_style(subjects, styles, draw).tolist()
    ranks = []
    for row, image in enumerate(looked_at):
        found = misfit(image, [captions[row], *(captions[i] for i in sampled[row].tolist())])
        ranks.append(1 + int((~(found[1:] > found[0] + _SAME)).sum()))
    return of_ranks(torch.tensor(ranks), candidates=1 + distractors)
