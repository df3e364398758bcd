"""Checks and limits of the page's inputs."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from imagen_pl.errors import UserError

MAX_PROMPT = 300  # letters
MAX_IMAGES = 16
MAX_FRAMES = 48
MAX_REFINE = 40
MAX_PROJECTION = 300  # steps
MAX_UPLOAD_MB = 10
MAX_UPLOAD_PIXELS = 25_000_000
MAX_ENLARGED_SIDE = 512  # px, of a picture before it is enlarged


def check_prompt(prompt: object, what: str = "prompt") -> str:
    """The prompt. Raises UserError if it is empty or too long; `what` names it."""
    text = " ".join(str(prompt or "").split())
    if not text:
        raise UserError(f"write a {what} first")
    return check_length(text, what)


def check_length(text: str, what: str = "prompt") -> str:
    """The text. Raises UserError if it is too long; `what` names it."""
    if len(text) > MAX_PROMPT:
        raise UserError(f"the {what} has {len(text)} letters: use {MAX_PROMPT} at most")
    return text


def check_seed(seed: float | None) -> int:
    """The seed. Raises UserError if it is not a whole number from 0 up."""
    if seed is None or not math.isfinite(seed) or seed != int(seed) or not 0 <= seed < 2**31:
        raise UserError(f"seed {seed} is not a whole number from 0 to {2**31 - 1}")
    return int(seed)


def check_number(number: float | None, most: int) -> int:
    """The number. Raises UserError if it is not between 1 and `most`."""
    if number is None or not 1 <= number <= most:
        raise UserError(f"{number} is not between 1 and {most}")
    return int(number)


def check_share(share: float | None, name: str) -> float:
    """The number. Raises UserError with this name if it is not between 0 and 1."""
    if share is None or not 0 <= share <= 1:
        raise UserError(f"{name} {share} is not between 0 and 1")
    return float(share)


def check_upload(file: Path, most_side: int | None = None) -> None:
    """Check an image by its file size and header, before it is decoded.

    Args:
        file: the image.
        most_side: its area may be that of a square of this side, px; None is the page's own limit.

    Raises:
        UserError: the file is gone, too large, or not an image.
    """
    if not file.is_file():
        raise UserError("the picture is not here any more: upload it again")
    if file.stat().st_size > MAX_UPLOAD_MB * 2**20:
        raise UserError(f"the file is larger than {MAX_UPLOAD_MB} MB")
    try:
        with Image.open(file) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise UserError(f"the picture has more than {MAX_UPLOAD_PIXELS // 10**6} million pixels") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError("the file cannot be read as a picture") from error
    if width * height > MAX_UPLOAD_PIXELS:
        raise UserError(
            f"the picture has {width} x {height} pixels: use {MAX_UPLOAD_PIXELS // 10**6} million at most"
        )
    if most_side is not None and width * height > most_side**2:
        raise UserError(f"the picture has {width} x {height} pixels: use {most_side} x {most_side} at most")


def check_given(file: str | None, most_side: int | None = None) -> Path:
    """The uploaded picture, checked as by `check_upload`. Raises UserError if there is none."""
    if not file:
        raise UserError("choose a picture first")
    check_upload(Path(file), most_side)
    return Path(file)
