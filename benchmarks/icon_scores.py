"""The scores of benchmarks/icons.py, from features.

Axes: p captions, k pictures a caption, q queries, n real pictures, f features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from benchmarks.icon_reference import REAL, Contrast, Query, Reference
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
    read: (share of pictures to which the judge gives their own name, not the other one, number of pictures)
        by group of contrasts.
    """

    name: str
    diversity: CaptionDiversity
    frechet: float
    subject: dict[str, tuple[float, float]]
    set: tuple[float, int]
    kind: tuple[float, int]
    words: dict[str, tuple[float, int]]
    named: dict[str, tuple[float, float]] = field(default_factory=dict)
    read: dict[str, tuple[float, int]] = field(default_factory=dict)


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
        queries = self.reference.queries
        return IconScore(
            name,
            caption_diversity(several, self.compared),
            frechet_distance(self.compared.flatten(0, 1), several.flatten(0, 1)),
            {
                group: accuracy(found, queries[group], self.real, self.centre)
                for group, found in answers.items()
            },
            self._recognised("set", judged or answers),
            self._recognised("kind", judged or answers),
            words_read(self.reference.contrasts, contrasted, self.real, self.centre),
        )

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

    def _labels(self, part: str, places: Sequence[int]) -> list[str]:
        return [getattr(self.reference.rows[place], part) for place in places]


def words_read(
    contrasts: Sequence[Contrast],
    pictures: Mapping[int, Float[Tensor, " f"]],
    real: Float[Tensor, "n f"],
    centre: Float[Tensor, " f"],
) -> dict[str, tuple[float, int]]:
    """By group, the share of pictures that are nearer to their own real picture than to the other one."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for number, picture in pictures.items():
        contrast = contrasts[number]
        pair = F.normalize(real[[contrast.own, contrast.other]] - centre, dim=1)
        own, other = (pair @ F.normalize(picture - centre, dim=0)).tolist()
        right[contrast.group].append(own > other)
    return {group: (sum(found) / len(found), len(found)) for group, found in right.items()}


def accuracy(
    pictures: Float[Tensor, "q f"],
    queries: Sequence[Query],
    real: Float[Tensor, "n f"],
    centre: Float[Tensor, " f"],
) -> tuple[float, float]:
    """Share of pictures whose own real picture is the nearest, and among the five nearest, by cosine."""
    ranks = []
    for picture, query in zip(pictures, queries, strict=True):
        among = F.normalize(real[[query.own, *query.others]] - centre, dim=1)
        nearness = among @ F.normalize(picture - centre, dim=0)
        ranks.append(1 + int((nearness[1:] >= nearness[0]).sum()))
    found = torch.tensor(ranks)
    return float((found <= 1).float().mean()), float((found <= 5).float().mean())


def named(
    seen: Mapping[str, Float[Tensor, "q e"]], reference: Reference, names: Mapping[str, Float[Tensor, " e"]]
) -> dict[str, tuple[float, float]]:
    """How often the judge gives a query's picture its own name among 100, first and among the first five.

    Args:
        seen: the judge's vectors of a picture for each query, by the name of the queries.
        reference: the queries.
        names: the judge's vector of each name.
    """
    found = {}
    for group, vectors in seen.items():
        ranks = []
        for vector, query in zip(vectors, reference.queries[group], strict=True):
            candidates = [reference.rows[place].words for place in (query.own, *query.others)]
            nearness = torch.stack([names[words] for words in candidates]) @ vector
            ranks.append(1 + int((nearness[1:] >= nearness[0]).sum()))
        top1, top5 = (sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5))
        found[group] = top1, top5
    return found


def read(
    seen: Float[Tensor, "n e"], reference: Reference, names: Mapping[str, Float[Tensor, " e"]]
) -> dict[str, tuple[float, int]]:
    """By group of contrasts, how often a picture fits its own name better than the other one.

    Args:
        seen: the judge's vector of a picture for each contrast.
        reference: the contrasts.
        names: the judge's vector of each name.
    """
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for vector, contrast in zip(seen, reference.contrasts, strict=True):
        own, other = (names[reference.rows[place].words] for place in (contrast.own, contrast.other))
        right[contrast.group].append(float(vector @ own) > float(vector @ other))
    return {group: (sum(found) / len(found), len(found)) for group, found in right.items()}
