"""The prompt suite: its prompts, and its rules on pictures made by hand and on real ones."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from benchmarks import words
from benchmarks.protocol import ReferenceSet, read_pictures, shrink
from imagen_pl.data.transforms import decode

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def judge() -> words.PromptJudge:
    """With the mean colours of each image's quarters as features, which need no network."""
    pictures, encoded = read_pictures()
    images = shrink(torch.stack([decode(data, 64) for data in encoded]), 32)
    features = torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)
    return words.PromptJudge(ReferenceSet(32, 0, pictures, images, features, asked=[]))


def blank() -> Tensor:
    return torch.full((3, 32, 32), 255, dtype=torch.uint8)


def patch(picture: Tensor, colour: tuple[int, int, int], rows: slice, columns: slice) -> Tensor:
    picture[:, rows, columns] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return picture


def test_two_hundred_prompts_have_one_rule_each(judge: words.PromptJudge) -> None:
    prompts = words.read_prompts()
    assert len({p.prompt for p in prompts}) == 200
    assert min(Counter(p.kind for p in prompts).values()) >= 10
    for p in prompts:
        rules = [p.colour, p.not_colour, p.count, p.tone, None if p.tone else p.like]
        assert sum(rule is not None for rule in rules) == 1, p
        assert p.like is None or p.tone is not None or p.like in judge.places, p
        assert {p.colour, p.not_colour} <= {None, *words.COLOURS}, p
        assert p.style is not None, p


def test_held_out_prompts_are_held_out(judge: words.PromptJudge) -> None:
    splits = {"held-out subject": "test", "held-out pair": "composition", "paraphrase": "train"}
    for p in words.read_prompts():
        if p.kind in splits:
            assert p.like is not None, p
            assert judge.reference.pictures[judge.places[p.like]].split == splits[p.kind], p


def test_dominant_colour_is_found() -> None:
    assert words.leading_colour(blank()) is None
    for name, colour in words.COLOURS.items():
        assert words.leading_colour(patch(blank(), colour, slice(8, 24), slice(8, 24))) == name
    two = patch(
        patch(blank(), (60, 130, 240), slice(0, 20), slice(0, 32)), (230, 40, 60), slice(20, 32), slice(0, 32)
    )
    assert words.leading_colour(two) == "blue"


def test_objects_are_counted() -> None:
    assert words.count_things(blank()) == 0
    three = blank()
    for column in (1, 12, 23):
        patch(three, (220, 40, 50), slice(10, 16), slice(column, column + 6))
    assert words.count_things(three) == 3
    patch(three, (0, 0, 0), slice(2, 3), slice(2, 3))  # a speck
    assert words.count_things(three) == 3
    patch(three, (0, 0, 0), slice(15, 16), slice(7, 12))  # a bridge from the first to the second
    assert words.count_things(three) == 2


def test_rules_on_pixels_hold_for_real_images(judge: words.PromptJudge) -> None:
    prompts = words.read_prompts()
    marks = words.mark_real(judge, prompts)
    output = [right for right in marks.right if right is not None]
    assert len(output) >= 40
    assert all(output)
    wrong = words.Prompt("skin tone", "waving hand: dark skin tone, noto style", tone="dark")
    light = judge.real("waving hand: light skin tone, noto style")
    assert not judge.right(wrong, light, torch.zeros(48))


def test_image_matches_its_own_subject_only(judge: words.PromptJudge) -> None:
    prompt = words.Prompt("held-out subject", "rose, noto style", like="rose, noto style")
    own, other = (judge.places[f"{name}, noto style"] for name in ("rose", "robot"))
    real = judge.reference.images
    assert judge.right(prompt, real[own], judge.reference.features[own])
    assert not judge.right(prompt, real[other], judge.reference.features[other])


def test_negation_is_right_for_another_colour_and_wrong_for_an_empty_picture(
    judge: words.PromptJudge,
) -> None:
    prompt = words.Prompt("negation", "a heart that is not red, noto style", not_colour="red")
    red, blue = (patch(blank(), words.COLOURS[name], slice(4, 28), slice(4, 28)) for name in ("red", "blue"))
    nothing = torch.zeros(48)
    assert not judge.right(prompt, red, nothing)
    assert judge.right(prompt, blue, nothing)
    assert not judge.right(prompt, blank(), nothing)


def test_table_has_shares_for_true_and_shuffled_prompts(judge: words.PromptJudge) -> None:
    prompts = [
        words.Prompt("swap", f"{colour} heart, noto style", colour=colour) for colour in ("red", "blue")
    ]
    pictures = [patch(blank(), words.COLOURS[c], slice(4, 28), slice(4, 28)) for c in ("red", "blue")]
    marks = words.mark(judge, "model", prompts, pictures, torch.zeros(2, 48))
    assert (marks.right, marks.shuffled) == ([True, True], [False, False])
    head, _, row = words.table(prompts, [marks]).splitlines()
    assert head == "| | swap (2) | style named |"
    assert row.startswith("| model | 100% (0%) |")
    assert words.grid(prompts, pictures, marks).size[0] > 150


def test_shuffled_prompt_has_the_same_rule() -> None:
    prompts = words.read_prompts()
    turned = words.turn_within_kinds(prompts)
    assert sorted(turned) == list(range(200))
    assert all(prompts[i].kind == prompts[k].kind and i != k for i, k in enumerate(turned))
