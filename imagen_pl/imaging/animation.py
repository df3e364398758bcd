"""Writes animations: GIF, WebP or MP4."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import strip
from imagen_pl.imaging.transparency import picture_on_white
from imagen_pl.storage.atomic_files import atomic_write

SUFFIXES = (".gif", ".webp", ".mp4")
_MIN_WIDTH = 256


def check_animation(file: Path, fps: float) -> None:
    """Raise UserError if the animation cannot be written: file type, frame rate, or a missing package."""
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file} must end in .gif, .webp or .mp4")
    if not 0 < fps <= 100:
        raise UserError(f"--fps {fps:g} must be more than 0 and at most 100")
    if file.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(f"{file}: .mp4 needs a package: pip install av; or use .gif or .webp") from None


def write_animation(frames: Iterable[Image.Image], file: Path, fps: float, loop: bool) -> int:
    """Write an animation; small frames are enlarged without smoothing.

    Args:
        frames: one or more images of equal size; transparent ones are shown on white.
        file: the output file; its suffix selects the format: .gif, .webp or .mp4.
        fps: frames a second. GIF rounds durations to 0.01 seconds.
        loop: repeat endlessly, if the format supports it (GIF and WebP).

    Returns:
        the number of frames.

    Raises:
        UserError: see `check_animation`.
    """
    check_animation(file, fps)
    shown = [strip([picture_on_white(frame)], _MIN_WIDTH) for frame in frames]
    with atomic_write(file) as opened:
        opened.write(_mp4(shown, fps) if file.suffix.lower() == ".mp4" else _animated(shown, file, fps, loop))
    return len(shown)


def _animated(frames: list[Image.Image], file: Path, fps: float, loop: bool) -> bytes:
    buffer = io.BytesIO()
    settings: dict[str, object] = {"loop": 0} if loop else {}
    if file.suffix.lower() == ".webp":
        settings |= {"lossless": True}
    frames[0].save(
        buffer,
        format=file.suffix[1:].upper(),
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        **settings,
    )
    return buffer.getvalue()


def _mp4(frames: list[Image.Image], fps: float) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.width, stream.height = (side // 2 * 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"  # supported by browsers and phones
        stream.options = {"crf": "15"}
        for frame in frames:
            cropped = np.asarray(frame.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cropped, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
