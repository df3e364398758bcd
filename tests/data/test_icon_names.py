"""What an icon's name says: subject, kind, split and captions."""

from __future__ import annotations

import hashlib

import pytest

from imagen_pl.data.icon_names import (
    IconName,
    SetNames,
    captions_of,
    emoji_subjects,
    most_held_out,
    simplest_form,
    split_of,
)


@pytest.mark.parametrize(
    ("name", "subject", "variant"),
    [
        ("shopping-cart", "shopping-cart", "regular"),
        ("shopping-cart-outline", "shopping-cart", "outline"),
        ("shopping-cart-outline-rounded", "shopping-cart", "outline rounded"),
        ("Outline-Rounded", "outline", "rounded"),
        ("cart", "cart", "regular"),
    ],
)
def test_the_longest_declared_variant_is_cut_off(name: str, subject: str, variant: str) -> None:
    suffixes = {
        "": "Regular",
        "rounded": "Rounded",
        "outline": "Outline",
        "outline-rounded": "Outline Rounded",
    }
    assert SetNames(["cart"], suffixes=suffixes).read(name) == IconName(subject, variant)


def test_a_declared_prefix_is_a_variant_too() -> None:
    names = SetNames(["outline-home"], prefixes={"outline": "Outline", "baseline": "Baseline"})
    assert names.read("outline-home") == IconName("home", "outline")
    assert names.read("outlined") == IconName("outlined", "")


def test_undeclared_variants_count_where_the_set_has_the_name_without_them() -> None:
    names = SetNames(["home", "home-filled", "line", "straight-line"])
    assert names.read("home-filled") == IconName("home", "filled")
    assert names.read("straight-line") == IconName("straight-line", "")
    declared = SetNames(["home", "home-filled"], suffixes={"alt": "Alternative"})
    assert declared.read("home-filled") == IconName("home-filled", "")


def test_numbers_are_sizes_only_where_nearly_all_names_end_with_one() -> None:
    sized = SetNames(["alert-16", "alert-24", "bell-16", "bell-24-filled"], suffixes={"filled": "Filled"})
    assert sized.read("bell-24-filled") == IconName("bell", "filled", 24)
    assert sized.read("alert-16") == IconName("alert", "", 16)
    assert sized.read("alert-16").words == "alert"
    assert SetNames(["battery-1", "battery-2", "bell"]).read("battery-2").subject == "battery-2"


def test_sizes_in_the_set_s_own_variants_are_no_kinds() -> None:
    suffixes = {"": "Outline 24x24", "20-solid": "Solid 20x20", "16": "16", "24-filled": "24 Filled"}
    names = SetNames(["bell", "cart"], suffixes=suffixes)
    assert names.read("bell-24-filled") == IconName("bell", "filled", 24)
    assert names.read("bell-20-solid") == IconName("bell", "solid", 20)
    assert names.read("bell-16") == IconName("bell", "", 16)
    assert names.read("bell") == IconName("bell", "outline", 24)


@pytest.mark.parametrize("key", ["home", "bell", "shopping-cart", "1f600", "star", "cloud-rain", "tooth"])
@pytest.mark.parametrize("icon_set", ["tabler", "mdi", "ph"])
def test_splits_follow_the_documented_rule(key: str, icon_set: str) -> None:
    n = int(hashlib.sha256(key.encode()).hexdigest(), 16)
    pair = int(hashlib.sha256(f"{key}/{icon_set}".encode()).hexdigest(), 16)
    wanted = {0: "test", 1: "validation"}.get(n % 10, "composition" if pair % 20 == 0 else "train")
    assert split_of(key, icon_set) == wanted


def test_an_icon_with_an_emoji_s_name_has_the_emoji_s_split() -> None:
    emoji = emoji_subjects(
        [{"label": "red heart", "hexcode": "2764-FE0F"}, {"label": "waving hand", "hexcode": "1F44B"}]
    )
    names = SetNames([], emoji=emoji)
    assert names.split_key("red-heart") == "2764"
    assert names.split_key("waving-hand-medium-dark-skin-tone") == "1f44b"
    assert names.split_key("waving-hand-light-skin-tone-dark-skin-tone") == "1f44b"
    assert names.split_key("bell") == "bell"


@pytest.mark.parametrize(
    ("subject", "simplest"),
    [
        ("bell", "bell"),
        ("sword-2", "sword"),
        ("arrows-up-2", "arrow-up"),
        ("robot-alt", "robot"),
        ("robot-one", "robot"),
        ("one-way", "one-way"),
        ("alt", "alt"),
        ("boxes", "box"),
        ("batteries", "battery"),
        ("glasses", "glass"),
        ("glass", "glass"),
        ("gas", "gas"),
        ("24-2", "24-2"),
    ],
)
def test_simplest_form(subject: str, simplest: str) -> None:
    assert simplest_form(subject) == simplest
    assert simplest_form(simplest) == simplest


def test_a_numbered_or_plural_name_is_in_the_split_of_its_subject() -> None:
    names = SetNames([], emoji=emoji_subjects([{"label": "red heart", "hexcode": "2764"}]))
    words = [f"{first}{last}ow" for first in "bcdfghjk" for last in "lrmn"]
    assert {split_of(word, "tabler") for word in words} == {"train", "validation", "test", "composition"}
    for word in words:
        found = {names.split_of(form, "tabler") for form in (word, f"{word}s", f"{word}-2", f"{word}-alt")}
        assert found == {split_of(word, "tabler")}
    assert names.split_of("red-hearts", "ph") == names.split_of("red-heart-2", "ph") == split_of("2764", "ph")


def test_the_most_held_out_split_wins() -> None:
    assert most_held_out({"train", "composition"}) == "composition"
    assert most_held_out({"validation", "train", "test"}) == "test"
    assert most_held_out({"train"}) == "train"


def test_captions_name_the_subject_then_kind_then_set() -> None:
    assert captions_of("bell", "outline", "Tabler Icons", ["alarm", "bell"]) == [
        "bell",
        "bell, outline",
        "bell, Tabler Icons, outline",
        "alarm",
    ]
    assert captions_of("bell", "", "Tabler Icons") == ["bell", "bell, Tabler Icons"]
