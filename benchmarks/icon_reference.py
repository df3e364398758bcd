"""The prompts of benchmarks/icons.py, and the real pictures that their pictures are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.word_pairs import mine
from imagen_pl.data.icon_names import simplest_form, without_numbers
from imagen_pl.data.sources.icons import IconRow
from imagen_pl.errors import UserError

CAPTIONS, PICTURES, REAL = 60, 8, 16
QUERIES, CANDIDATES, SETS, POOL = 100, 100, 8, 130
WORD_PAIRS = 40  # of each category, learnt and held out
JUDGED = 300  # pictures of each set that the judges of sets and kinds are fitted to
# Sets name the same kind differently. Kinds that name no family, such as "regular", are left out, and so is
# "bold", which is a thick outline in one set and filled in another.
_FAMILIES = {
    "duotone": ("duo", "two tone", "twotone", "two-tone"),
    "filled": ("fill", "solid"),
    "outline": ("outline", "line", "stroke", "thin", "light"),
}


@dataclass(frozen=True)
class Query:
    """A caption to draw, its real picture, and 99 others of the same set; rows of `Reference.rows`."""

    caption: str
    own: int
    others: list[int]
    stand_in: int  # the same subject in another set


@dataclass(frozen=True)
class Contrast:
    """One icon of a pair whose names differ in one word; places in `Reference.rows`.

    group: the category, and whether the pair was learnt.
    stand_in: a picture of the same name in another set; None if there is none.
    """

    group: str
    caption: str
    own: int
    other: int
    stand_in: int | None


@dataclass(frozen=True)
class Reference:
    """The prompts and the real pictures.

    rows: all real pictures that are compared.
    by_caption: for each caption, its real pictures: 16 to compare with, then 8 that answer for "real".
    queries: by name of the row group: train, pairs, subjects.
    judged_by: real pictures of the sets, to which the judges of sets and kinds are fitted; none is a query's.
    contrasts: both icons of the pairs whose names differ in one word.
    """

    rows: list[IconRow]
    by_caption: dict[str, list[int]]
    queries: dict[str, list[Query]]
    judged_by: list[int]
    contrasts: list[Contrast]


def make_reference(rows: Sequence[IconRow], held_out: str, seed: int) -> Reference:
    """Choose prompts and real pictures at random.

    Args:
        rows: all icons.
        held_out: the split whose subjects were not learnt, validation or test.
        seed: of the choice.

    Raises:
        UserError: too few subjects have enough pictures.
    """
    draw = np.random.default_rng(seed)
    needed: dict[int, int] = {}  # place in `rows` -> place in the reference

    def use(place: int) -> int:
        return needed.setdefault(place, len(needed))

    of_subject: defaultdict[str, list[int]] = defaultdict(list)
    of_set: defaultdict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        of_subject[row.words].append(i)
        of_set[row.set].append(i)
    common = [
        words
        for words, held in of_subject.items()
        if sum(rows[i].split == "train" for i in held) >= REAL + PICTURES
    ]
    if len(common) < 2:
        raise UserError(f"the icons have {len(common)} subjects with {REAL + PICTURES} pictures to train on")
    chosen = draw.choice(len(common), min(CAPTIONS, len(common)), replace=False)
    by_caption = {}
    for k in sorted(chosen.tolist()):
        held = [i for i in of_subject[common[k]] if rows[i].split == "train"]
        picked = draw.choice(held, REAL + PICTURES, replace=False).tolist()
        by_caption[common[k]] = [use(i) for i in picked]
    pools = {}  # of the largest sets: pictures of different subjects
    for name in sorted(of_set, key=lambda each: len(of_set[each]), reverse=True)[:SETS]:
        one_each = {rows[i].words: i for i in draw.permutation(of_set[name]).tolist()}
        pools[name] = [use(i) for i in list(one_each.values())[:POOL]]
    names = {place: rows[i].words for i, place in needed.items()}
    queries = {}
    learnt = learnt_forms(rows)
    for group, split in (("train", "train"), ("pairs", "composition"), ("subjects", held_out)):
        possible = [i for i, row in enumerate(rows) if row.split == split and row.set in pools]
        if group == "subjects":
            possible = [i for i in possible if is_new(rows[i].words, learnt)]
        found: list[Query] = []
        for i in draw.permutation(possible).tolist():
            elsewhere = [j for j in of_subject[rows[i].words] if rows[j].set != rows[i].set]
            others = [place for place in pools[rows[i].set] if names[place] != rows[i].words]
            if elsewhere and len(others) >= CANDIDATES - 1 and len(found) < QUERIES:
                stand_in = use(elsewhere[int(draw.integers(len(elsewhere)))])
                found.append(Query(rows[i].full_caption, use(i), others[: CANDIDATES - 1], stand_in))
        queries[group] = found
    contrasts = []
    for pair in mine(rows, WORD_PAIRS, seed):
        group = f"{pair.category}, {'held out' if pair.held_out else 'learnt'}"
        for own, other in ((pair.first, pair.second), (pair.second, pair.first)):
            elsewhere = [j for j in of_subject[rows[own].words] if rows[j].set != rows[own].set]
            real_answer = use(elsewhere[int(draw.integers(len(elsewhere)))]) if elsewhere else None
            contrasts.append(Contrast(group, rows[own].full_caption, use(own), use(other), real_answer))
    asked = {query.own for group in queries.values() for query in group}
    judged_by = []
    for name in pools:
        possible = [i for i in draw.permutation(of_set[name]).tolist() if needed.get(i) not in asked]
        judged_by += [use(i) for i in possible[:JUDGED]]
    return Reference([rows[place] for place in needed], by_caption, queries, judged_by, contrasts)


def learnt_forms(rows: Sequence[IconRow]) -> set[str]:
    """All forms of the subjects that have an icon in the training split."""
    return {form for row in rows if row.split == "train" for form in forms_of(row.words)}


def is_new(words: str, learnt: set[str]) -> bool:
    """Whether a subject was not learnt in any form.

    A plural or a numbered name is never new: the split of data that was built later follows its simplest
    form, which may have been learnt.
    """
    forms = forms_of(words)
    return len(forms) == 1 and forms.isdisjoint(learnt)


def forms_of(words: str) -> set[str]:
    """A subject's words, and its simpler forms: a name whose plural was learnt is not a new one."""
    subject = words.replace(" ", "-")
    return {subject, without_numbers(subject), simplest_form(subject)}


def kind_family(kind: str) -> str:
    """outline, filled or duotone, as the kind of any set says; "" for other kinds.

    Coloured icons are none of the three.
    """
    if "coloured" in kind:
        return ""
    return next((family for family, parts in _FAMILIES.items() if any(part in kind for part in parts)), "")
