"""Images converted to SVG: rendering the SVG gives the image again."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagen_pl.data.sources.icons import IconSource
from imagen_pl.errors import UserError
from imagen_pl.imaging.svg import save_svg, trace

pytest.importorskip("vtracer")
resvg_py = pytest.importorskip("resvg_py")


def drawn(svg: str, side: int = 64) -> np.ndarray:
    """The SVG on white, as levels."""
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))))
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB"), np.float32)


def error(picture: Image.Image) -> float:
    """Mean difference of a picture and its traced one, levels of 255."""
    return float(np.abs(drawn(trace(picture)) - np.asarray(picture.convert("RGB"), np.float32)).mean())


def fills(svg: str) -> set[str]:
    return set(re.findall(r'fill="(#[0-9A-Fa-f]{6})"', svg))


def ring(colour: str = "black") -> Image.Image:
    large = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(large).ellipse((64, 64, 448, 448), outline=colour, width=48)
    return large.resize((64, 64), Image.Resampling.BOX)


def test_icons_of_one_colour_are_traced_in_one_colour() -> None:
    svg = trace(ring())
    (fill,) = fills(svg) - {"#FFFFFF"}
    assert max(bytes.fromhex(fill[1:])) < 40
    assert error(ring()) < 3


def test_colours_of_a_picture_are_kept() -> None:
    picture = ring("#3060c0")
    ImageDraw.Draw(picture).rectangle((26, 26, 37, 37), fill="#d03020")
    svg = trace(picture)
    pixels = drawn(svg)
    assert np.abs(pixels[31, 31] - [0xD0, 0x30, 0x20]).max() < 12
    assert np.abs(pixels[31, 11] - [0x30, 0x60, 0xC0]).max() < 25
    assert np.abs(pixels[31, 20] - 255).max() < 12, "the ring's inside is white"


def test_background_is_left_out() -> None:
    """The corner is transparent."""
    svg = trace(ring())
    rendered = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64))))
    assert rendered.convert("RGBA").getpixel((1, 1))[3] == 0  # type: ignore[index]


def test_transparent_pictures_are_traced_on_white() -> None:
    mask = Image.eval(ring().convert("L"), lambda level: 255 - level)
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), mask=mask)
    assert np.abs(drawn(trace(clear)) - np.asarray(ring(), np.float32)).mean() < 3


def test_real_icons_come_back_within_a_few_levels() -> None:
    """The ceiling of what a model's pictures can have: icons that ship, traced from 64 px."""
    rows = IconSource().icon_rows()
    chosen = np.random.default_rng(0).choice(len(rows), 40, replace=False)
    errors = [error(Image.open(io.BytesIO(rows[i].image))) for i in chosen]
    assert np.mean(errors) < 5
    assert max(errors) < 12


def test_file_is_valid_and_says_where_the_picture_is_from(tmp_path: Path) -> None:
    save_svg(ring(), tmp_path / "ring.svg", {"prompt": "<ring> & co", "seed": 3})
    root = ElementTree.parse(tmp_path / "ring.svg").getroot()
    assert root.attrib["viewBox"] == "0 0 512 512"
    assert root.attrib["width"] == "64"
    assert root[0].text == "prompt: <ring> & co; seed: 3"
    assert np.abs(drawn((tmp_path / "ring.svg").read_text()) - np.asarray(ring(), np.float32)).mean() < 3


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vtracer", None)
    with pytest.raises(UserError, match=r"writing SVG needs vtracer: pip install 'imagen_pl\[svg\]'"):
        trace(ring())
