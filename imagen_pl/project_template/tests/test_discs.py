"""The data source."""

from __future__ import annotations

import io
import pickle

from imagen_pl.data.skipped_images import SkippedImages
from PIL import Image

from my_project.discs import COLOURS, Discs


def test_half_of_the_sizes_are_held_out() -> None:
    splits = Discs(sizes=4).load(SkippedImages())
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12, "validation": 12}
    names = [{row.name for row in rows} for rows in splits.values()]
    assert names[0].isdisjoint(names[1])
    assert {row.captions[0] for row in splits["train"]} == {f"a {colour} disc" for colour in COLOURS}


def test_picture_matches_its_caption() -> None:
    source = pickle.loads(pickle.dumps(Discs(sizes=4)))  # data loader workers receive a pickled copy
    red = next(row for row in source.load(SkippedImages())["train"] if row.captions == ("a red disc",))
    picture = Image.open(io.BytesIO(source.image(red)))
    assert picture.size == (64, 64)
    assert picture.getpixel((32, 32)) == (255, 0, 0)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
