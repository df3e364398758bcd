"""Caption scores against values computed by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.caption_metrics import caption_retrieval, score_captions, words
from imagen_pl.errors import UserError


def test_captions_are_split_into_lower_case_words() -> None:
    assert words("Red heart,  Fluent-style (café)") == [
        "red",
        "heart",
        ",",
        "fluent",
        "-",
        "style",
        "(",
        "café",
        ")",
    ]
    assert words("") == []


def test_exact_captions_get_full_scores() -> None:
    truth = ["a red heart on a wall", "the blue cat sits there", "one more thing is here"]
    scores = score_captions([*truth[:2], "One more THING is here"], [[one] for one in truth])
    assert scores.bleu4 == pytest.approx(1, abs=1e-6)
    assert scores.rouge_l == 1
    assert scores.cider == pytest.approx(10)
    assert scores.exact == 1
    assert scores.captions == 3


def test_bleu_equals_a_value_computed_by_hand() -> None:
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples and 1 of 3 runs of four are right; lengths are equal."""
    scores = score_captions(
        ["the cat sat on the mat", "x"], [["the cat sat on a mat"], ["x"]]
    )  # the second adds one right word
    precisions = ((5 + 1) / (6 + 1), 3 / 5, 2 / 4, 1 / 3)
    assert scores.bleu4 == pytest.approx(math.prod(precisions) ** 0.25, abs=1e-6)


def test_bleu_penalises_short_captions() -> None:
    truth = [["the cat sat on the mat"], ["a dog ran over the hill"]]
    scores = score_captions(["the cat sat on", "a dog ran over"], truth)
    assert scores.bleu4 == pytest.approx(math.exp(1 - 6 / 4), abs=1e-6)  # all right, but 4 words of 6


def test_rouge_equals_a_value_computed_by_hand() -> None:
    """The longest common run of "a b c d" and "a c d e f" is "a c d": precision 3/4, recall 3/5."""
    scores = score_captions(["a b c d", "x"], [["a c d e f"], ["y"]])
    precision, recall, beta = 3 / 4, 3 / 5, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scores.rouge_l == pytest.approx(expected / 2)


def test_cider_equals_a_value_computed_by_hand() -> None:
    """Runs of three and four words are none, and count 0; "the" is in all references and weighs nothing."""
    scores = score_captions(["the cat", "the dog"], [["the cat"], ["the fish"]])
    # Of the first, words agree (1), and pairs (1); the other two lengths are empty. Of the second, nothing.
    assert scores.cider == pytest.approx(10 * (1 + 1 + 0 + 0) / 4 / 2)


def test_best_of_several_references_counts() -> None:
    one = score_captions(["red heart", "a cat"], [["a picture"], ["a cat"]])
    two = score_captions(["red heart", "a cat"], [["a picture", "red heart"], ["a cat"]])
    assert (one.exact, two.exact) == (0.5, 1.0)
    assert two.rouge_l > one.rouge_l


def test_missing_library_gives_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(UserError, match=r"pip install 'imagen_pl\[captions\]'"):
        score_captions(["a", "b"], [["a"], ["b"]])


def test_number_of_captions_must_equal_number_of_references() -> None:
    with pytest.raises(ValueError, match="2 captions and 1 references"):
        score_captions(["a", "b"], [["a"]])


# ------------------------------------------------------------------ retrieval

STYLES = ["flat"] * 6 + ["round"] * 6
SUBJECTS = [*range(6), *range(6)]
CAPTIONS = [f"{subject}, {style}" for subject, style in zip(SUBJECTS, STYLES, strict=True)]


def knows(image: int, captions: Sequence[str]) -> Tensor:
    return torch.tensor([0.0 if caption == CAPTIONS[image] else 1.0 for caption in captions])


def test_perfect_features_retrieve_every_image() -> None:
    found = caption_retrieval(knows, CAPTIONS, SUBJECTS, STYLES, distractors=5)
    assert (found.top1, found.mrr, found.queries, found.candidates) == (1, 1, 12, 6)
    shuffled = caption_retrieval(knows, CAPTIONS, SUBJECTS, STYLES, distractors=5, shuffled=True)
    assert shuffled.top1 == 0


def test_distractors_are_other_subjects_of_the_same_style() -> None:
    seen: list[tuple[int, list[str]]] = []

    def recorded(image: int, captions: Sequence[str]) -> Tensor:
        seen.append((image, list(captions)))
        return knows(image, captions)

    caption_retrieval(recorded, CAPTIONS, SUBJECTS, STYLES, distractors=5)
    for image, captions in seen:
        assert captions[0] == CAPTIONS[image]
        assert len({caption.split(",")[0] for caption in captions}) == 6
        assert {caption.split(", ")[1] for caption in captions} == {STYLES[image]}


def test_ties_and_nans_count_against_the_model() -> None:
    alike = caption_retrieval(
        lambda _, captions: torch.zeros(len(captions)), CAPTIONS, SUBJECTS, STYLES, distractors=5
    )
    assert (alike.top1, alike.mrr) == (0, pytest.approx(1 / 6))
    broken = caption_retrieval(
        lambda _, captions: torch.full((len(captions),), math.nan), CAPTIONS, SUBJECTS, STYLES, distractors=5
    )
    assert broken.top5 == 0


def test_too_few_subjects_raise() -> None:
    with pytest.raises(UserError, match="style flat holds 6 subjects: 99 distractors need 100"):
        caption_retrieval(knows, CAPTIONS, SUBJECTS, STYLES)
