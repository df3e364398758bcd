"""benchmarks/icons.py: the choice of prompts, and the scores of real, copied and wrong pictures."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from benchmarks.icon_judge import IconJudge
from benchmarks.icon_reference import PICTURES, REAL, Reference, is_new, kind_family, make_reference
from benchmarks.icon_scores import IconScorer, WordScorer
from benchmarks.icons import PARTS, of_number, table
from benchmarks.word_pairs import mine
from imagen_pl.data.sources.icons import IconRow


def rows(subjects: int = 160, sets: int = 26) -> list[IconRow]:
    """Every subject in every set; a tenth of the subjects and of the pairs are held out."""
    found = []
    for subject in range(subjects):
        for number in range(sets):
            split = "train"
            if subject % 10 == 0:
                split = "validation"
            elif (subject + number) % 20 == 0:
                split = "composition"
            words = f"matter of{subject}" if split == "validation" else f"thing {subject}"
            name = f"Set {number}"
            found.append(IconRow(words, name, "outline", split, f"{words}, {name}, outline", b""))
    return found


def features(reference: Reference) -> Tensor:
    """Of each real picture: its subject's centre, and a little noise."""
    numbers = [int(row.words.split()[1].removeprefix("of")) for row in reference.rows]
    centres = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(numbers), 32, generator=torch.Generator().manual_seed(1))
    return centres[numbers] + 0.3 * noise


def test_queries_keep_to_their_splits_and_candidates_to_their_set() -> None:
    reference = make_reference(rows(), "validation", seed=0)

    assert len(reference.by_caption) == 60
    for caption, places in reference.by_caption.items():
        shown = [reference.rows[place] for place in places]
        assert len(set(places)) == REAL + PICTURES
        assert {row.words for row in shown} == {caption}
        assert {row.split for row in shown} == {"train"}
    for group, split in (("train", "train"), ("pairs", "composition"), ("subjects", "validation")):
        assert 50 < len(reference.queries[group]) <= 100
        for query in reference.queries[group]:
            own, stand_in = reference.rows[query.own], reference.rows[query.stand_in]
            others = [reference.rows[place] for place in query.others]
            assert own.split == split
            assert query.caption == own.full_caption
            assert len({row.words for row in others} | {own.words}) == 100
            assert {row.set for row in others} == {own.set}
            assert (stand_in.words, stand_in.set == own.set) == (own.words, False)


@pytest.mark.parametrize(
    ("words", "learnt", "new"),
    [
        ("sword", {"axe"}, True),
        ("sword", {"sword"}, False),
        ("swords", {"axe"}, False),  # the split of a later build follows "sword", which may be learnt
        ("sword 2", {"axe"}, False),
        ("long sword", {"sword"}, True),
    ],
)
def test_a_subject_is_new_if_no_form_of_its_name_was_learnt(words: str, learnt: set[str], new: bool) -> None:
    assert is_new(words, learnt) == new


def test_a_subject_that_was_learnt_in_the_plural_is_left_out() -> None:
    asked = make_reference([*rows(), icon("matters of10")], "validation", seed=0).queries["subjects"]
    before = make_reference(rows(), "validation", seed=0).queries["subjects"]

    assert any("matter of10," in query.caption for query in before)
    assert asked
    assert not any("matter of10," in query.caption for query in asked)


def test_questions_depend_on_the_seed_alone() -> None:
    first, same, other = (make_reference(rows(), "validation", seed) for seed in (0, 0, 1))
    assert first == same != other


def test_real_pictures_score_near_the_ceiling_and_one_picture_a_caption_the_floor() -> None:
    reference = make_reference(rows(), "validation", seed=0)
    real = features(reference)

    scorer = IconScorer(reference, real)
    ceiling = scorer.score_real()
    assert abs(ceiling.diversity.diversity - 1) < 0.05
    assert all(top1 > 0.95 for top1, _ in ceiling.subject.values())

    one = torch.stack([real[places[0]] for places in reference.by_caption.values()])
    wrong = {name: real[[q.others[0] for q in asked]] for name, asked in reference.queries.items()}
    swapped = {i: real[each.other] for i, each in enumerate(reference.contrasts)}
    floor = scorer.score("one picture", one[:, None].expand(-1, PICTURES, -1), wrong, swapped)
    assert floor.diversity.diversity < 1e-6
    assert all(top5 < 0.15 for _, top5 in floor.subject.values())
    assert floor.frechet > ceiling.frechet
    assert ceiling.words["number, learnt"] == (1.0, 80)
    assert floor.words["number, learnt"] == (0.0, 80)
    assert ceiling.set[1] == ceiling.kind[1] == sum(map(len, reference.queries.values()))
    assert ceiling.set[0] < 0.4, "these features know nothing of the sets"
    shown = table([ceiling, floor], {part: scorer.chance(part) for part in PARTS}).splitlines()
    assert shown[2].startswith("| chance |  |")
    assert shown[2].endswith(f"| 1% / 5% | {scorer.chance('set'):.0%} | 100% |")
    assert shown[4].startswith("| one picture | 0.00 ± 0.00 | 0.00 |")


def test_share_is_shown_with_its_standard_error() -> None:
    assert of_number((0.8, 100)) == "80% ± 4% of 100"
    assert of_number(None) == ""


def icon(words: str, icon_set: str = "A", kind: str = "outline", split: str = "train") -> IconRow:
    return IconRow(words, icon_set, kind, split, f"{words}, {icon_set}, {kind}", b"")


def test_pairs_differ_in_one_word_within_a_set_and_kind() -> None:
    rows = [
        icon("bell"), icon("bell off"), icon("bell ring", split="validation"), icon("bell", "B"),
        icon("arrow left"), icon("arrow right"), icon("dice 2"), icon("dice 10"), icon("star", kind="filled"),
        icon("star off"), icon("cloud rain off"),
    ]  # fmt: skip
    found = {
        (pair.category, frozenset({rows[pair.first].words, rows[pair.second].words}), pair.held_out)
        for pair in mine(rows, 10, seed=0)
    }
    assert found == {
        ("negation", frozenset({"bell", "bell off"}), False),
        ("attribute", frozenset({"bell", "bell ring"}), True),
        ("direction", frozenset({"arrow left", "arrow right"}), False),
        ("number", frozenset({"dice 2", "dice 10"}), False),
    }


def test_number_of_pairs_is_limited_and_drawn_by_the_seed() -> None:
    rows = [icon(f"dice {number}") for number in range(30)]
    first, same, other = (mine(rows, 10, seed) for seed in (0, 0, 1))
    assert len(first) == 10
    assert first == same != other


class Reader:
    """In place of the judge: a picture's brightness is the number of the name that it shows."""

    def __init__(self, names: int) -> None:
        self.vectors = torch.eye(names)

    def read(self, captions: list[str]) -> Tensor:
        return self.vectors[: len(captions)]

    def look(self, images: Tensor) -> Tensor:
        return self.vectors[images[:, 0, 0, 0].long()]


def test_judge_s_answers_are_counted_by_query_and_by_contrast() -> None:
    reference = make_reference(rows(), "validation", seed=0)
    names = sorted({row.words for row in reference.rows})
    scorer = WordScorer(reference, cast(IconJudge, Reader(len(names))))
    queries, contrasts = reference.queries["train"], reference.contrasts

    def pictures(of: list[int]) -> Tensor:
        numbers = torch.tensor([names.index(reference.rows[place].words) for place in of])
        return numbers[:, None, None, None].expand(-1, 3, 4, 4)

    right, wrong = pictures([q.own for q in queries]), pictures([q.others[0] for q in queries])
    half = len(queries) // 2
    assert scorer.named({"train": right}) == {"train": (1.0, 1.0)}
    top1, _ = scorer.named({"train": torch.cat([right[:half], wrong[half:]])})["train"]
    assert top1 == pytest.approx(half / len(queries))
    assert contrasts
    for which, share in (("own", 1.0), ("other", 0.0)):
        found = scorer.pair_accuracy(pictures([getattr(each, which) for each in contrasts]))
        assert found.keys() == {each.group for each in contrasts}
        assert {right for right, _ in found.values()} == {share}


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("outline", "outline"), ("linear", "outline"), ("outline bold", "outline"), ("sharp fill", "filled"),
        ("filled", "filled"), ("line duotone", "duotone"), ("sharp two tone", "duotone"), ("bold", ""),
        ("coloured fill", ""), ("", ""),
    ],
)  # fmt: skip
def test_kinds_that_sets_name_differently_are_one_family(kind: str, family: str) -> None:
    assert kind_family(kind) == family
