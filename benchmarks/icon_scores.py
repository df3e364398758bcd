"""The scores of benchmarks/icons.py, from features.

Axes: p captions, k pictures a caption, q queries, n real pictures, f features.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from benchmarks.icon_judge import IconJudge, Images
from benchmarks.icon_reference import REAL, Reference, kind_family
from benchmarks.style_judge import StyleJudge
from imagen_pl.metrics.caption_diversity import CaptionDiversity, caption_diversity
from imagen_pl.metrics.distances import frechet_distance

Answers = Mapping[str, Float[Tensor, "q f"]]  # one picture for each query, by the name of the queries


@dataclass(frozen=True)
class IconScore:
    """One row of the tables.

    subject: (top-1, top-5) by the name of the queries.
    set, kind: (share that the judge gets right, number of pictures) over all queries.
    words: (share of pictures nearer to their own real picture, number of pictures) by group of contrasts.
    named: (top-1, top-5) by the name of the queries: the judge finds the caption's name among 100.
    pair_accuracy: (share of pictures that fit their own name better than the other one, by the judge, number
        of pictures) by group of contrasts.
    """

    name: str
    diversity: CaptionDiversity
    frechet: float
    subject: dict[str, tuple[float, float]]
    set: tuple[float, int]
    kind: tuple[float, int]
    words: dict[str, tuple[float, int]]
    named: dict[str, tuple[float, float]] = field(default_factory=dict)
    pair_accuracy: dict[str, tuple[float, int]] = field(default_factory=dict)


class IconScorer:
    """Scores pictures against the real ones. The judges of sets and kinds are fitted once.

    Args:
        reference: prompts and real pictures.
        real: features of `reference.rows`.
    """

    def __init__(self, reference: Reference, real: Float[Tensor, "n f"]) -> None:
        self.reference, self.real, self.centre = reference, real, real.mean(0)
        self.compared = torch.stack([real[places[:REAL]] for places in reference.by_caption.values()])
        self.judges = {
            part: StyleJudge.fit(real[reference.judged_by], self._labels(part, reference.judged_by))
            for part in ("set", "kind")
        }

    def score(
        self,
        name: str,
        several: Float[Tensor, "p k f"],
        answers: Answers,
        contrasted: Mapping[int, Float[Tensor, " f"]],
        judged: Answers | None = None,
    ) -> IconScore:
        """One row of the tables.

        Args:
            name: of the row.
            several: pictures of each caption.
            answers: a picture for each query.
            contrasted: pictures of the contrasts, by the contrast's number.
            judged: the pictures that the judges look at; None takes `answers`.
        """
        return IconScore(
            name,
            caption_diversity(several, self.compared),
            frechet_distance(self.compared.flatten(0, 1), several.flatten(0, 1)),
            {group: self._found(group, pictures) for group, pictures in answers.items()},
            self._recognised("set", judged or answers),
            self._recognised("kind", judged or answers),
            self._nearer_to_own(contrasted),
        )

    def chance(self, part: str) -> float:
        """What answering with the most frequent set or kind gets right."""
        asked = [query.own for queries in self.reference.queries.values() for query in queries]
        labels = Counter(label for label in self._labels(part, asked) if label)
        return max(labels.values()) / sum(labels.values()) if labels else float("nan")

    def score_real(self) -> IconScore:
        """What other real pictures score: the ceiling."""
        queries, contrasts = self.reference.queries, self.reference.contrasts
        asked = {group: found for group, found in queries.items() if found}
        return self.score(
            "real",
            torch.stack([self.real[places[REAL:]] for places in self.reference.by_caption.values()]),
            {group: self.real[[query.stand_in for query in found]] for group, found in asked.items()},
            {i: self.real[each.stand_in] for i, each in enumerate(contrasts) if each.stand_in is not None},
            judged={group: self.real[[query.own for query in found]] for group, found in asked.items()},
        )

    def _recognised(self, part: str, answers: Answers) -> tuple[float, int]:
        """How often the judge of sets or of kinds is right about the queries' pictures."""
        asked = [query.own for group in answers for query in self.reference.queries[group]]
        return self.judges[part].accuracy(torch.cat(list(answers.values())), self._labels(part, asked))

    def _found(self, group: str, pictures: Float[Tensor, "q f"]) -> tuple[float, float]:
        real = self.real[candidates(self.reference, group)]
        return first_and_five(self._directions(pictures), self._directions(real))

    def _directions(self, features: Float[Tensor, "*n f"]) -> Float[Tensor, "*n f"]:
        return F.normalize(features - self.centre, dim=-1)

    def _nearer_to_own(self, contrasted: Mapping[int, Float[Tensor, " f"]]) -> dict[str, tuple[float, int]]:
        asked = [self.reference.contrasts[number] for number in contrasted]
        if not asked:
            return {}
        pairs = self.real[torch.tensor([[each.own, each.other] for each in asked])]
        pictures = self._directions(torch.stack(list(contrasted.values())))
        return nearer_to_first(pictures, self._directions(pairs), [each.group for each in asked])

    def _labels(self, part: str, places: Sequence[int]) -> list[str]:
        rows = [self.reference.rows[place] for place in places]
        return [kind_family(row.kind) if part == "kind" else row.set for row in rows]


def first_and_five(pictures: Float[Tensor, "q f"], candidates: Float[Tensor, "q c f"]) -> tuple[float, float]:
    """How often the first candidate is the nearest one, and among the five nearest, by the dot product."""
    nearness = torch.einsum("qf,qcf->qc", pictures, candidates)
    ranks = 1 + (nearness[:, 1:] >= nearness[:, :1]).sum(1)
    return float((ranks <= 1).float().mean()), float((ranks <= 5).float().mean())


def nearer_to_first(
    pictures: Float[Tensor, "n f"], pairs: Float[Tensor, "n 2 f"], groups: Sequence[str]
) -> dict[str, tuple[float, int]]:
    """By group, how often a picture is nearer to the first of its pair, and the number of pictures."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    nearness = torch.einsum("nf,npf->np", pictures, pairs)
    for group, (own, other) in zip(groups, nearness.tolist(), strict=True):
        right[group].append(own > other)
    return {group: (sum(found) / len(found), len(found)) for group, found in right.items()}


class WordScorer:
    """Whether the judge of words reads the captions in the pictures.

    Args:
        reference: the prompts.
        judge: benchmarks/icon_judge.py.
    """

    def __init__(self, reference: Reference, judge: IconJudge) -> None:
        self.reference, self.judge = reference, judge
        self.words = [row.words for row in reference.rows]
        names = sorted(set(self.words))
        self.read = judge.read(names)[torch.tensor([names.index(words) for words in self.words])]

    def named(self, answers: Mapping[str, Images]) -> dict[str, tuple[float, float]]:
        """By the name of the queries: how often a picture's own name is first, and among the first five."""
        return {
            group: first_and_five(self.judge.look(images), self.read[candidates(self.reference, group)])
            for group, images in answers.items()
        }

    def pair_accuracy(self, contrasted: Images) -> dict[str, tuple[float, int]]:
        """By group of contrasts: how often a picture fits its own name better than the other one."""
        contrasts = self.reference.contrasts
        pairs = torch.tensor([[each.own, each.other] for each in contrasts])
        return nearer_to_first(
            self.judge.look(contrasted), self.read[pairs], [each.group for each in contrasts]
        )


def candidates(reference: Reference, group: str) -> Int64[Tensor, "q c"]:
    """For each query the place of its own picture in the reference, then those of the others."""
    return torch.tensor([[query.own, *query.others] for query in reference.queries[group]])
