"""What sources declare: licence, styles, and whether captions may be published."""

from __future__ import annotations

import pytest

from imagen_pl.data.sources import FolderSource, WebDatasetSource
from imagen_pl.data.sources.declaration import SourceDeclaration, declaration_of
from imagen_pl.data.sources.emoji import EmojiSource

EMOJI = "imagen_pl.data.sources.emoji.EmojiSource"


def test_the_shipped_emoji_may_be_published_and_a_user_s_file_may_not() -> None:
    shipped, own = EmojiSource().declaration(), EmojiSource("mine.parquet").declaration()
    assert shipped.captions_may_be_published
    assert "Twemoji (CC-BY 4.0" in str(shipped.licence)
    assert shipped.styles == own.styles == ("fluent", "noto", "twemoji")
    assert (own.captions_may_be_published, own.licence) == (False, None)
    assert EmojiSource(styles=["noto"]).declaration().styles == ("noto",)


def test_other_sources_declare_nothing_unless_they_override() -> None:
    for source in (FolderSource("photos"), WebDatasetSource("shards/{0..3}.tar")):
        assert source.declaration() == SourceDeclaration()


def test_a_declaration_is_read_from_a_description_without_opening_data() -> None:
    described = {"class_path": EMOJI, "init_args": {"path": "not/there.parquet", "styles": ["noto"]}}
    assert declaration_of(described).styles == ("noto",)
    assert declaration_of({"class_path": EMOJI}) == EmojiSource().declaration()


@pytest.mark.parametrize(
    "described",
    [
        None,
        {},
        {"class_path": "not_installed.MyEmojiSource"},
        {"class_path": "imagen_pl.data.sources.emoji.NoSuchSource"},
        {"class_path": "pathlib.Path", "init_args": {}},
        {"class_path": EMOJI, "init_args": {"no_such_argument": 1}},
    ],
)
def test_sources_that_cannot_be_constructed_declare_nothing(described: dict[str, object] | None) -> None:
    assert declaration_of(described) == SourceDeclaration()
