"""`imagen-pl data captions`: a caption beside each image of a folder that has none.

Axes: b batch, h w pixels.
"""

from __future__ import annotations

import argparse
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from imagen_pl.cli.counting import counted
from imagen_pl.data.progress import print_above_bars, progress_bar
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.folder import FolderSource, captions_in
from imagen_pl.data.transforms import UNREADABLE, quiet_pillow
from imagen_pl.errors import UserError
from imagen_pl.inference.retrieval_captioning import AnyCaptioner, load_any_captioner
from imagen_pl.storage.atomic_files import atomic_write

_BATCH = 32
_THREADS = 4


@dataclass
class Captioned:
    """The result of captioning a folder.

    written: number of captions written.
    problems: images left without a caption.
    """

    written: int = 0
    problems: SkippedImages = field(default_factory=SkippedImages)


def caption_folder(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is wrong, there are no images, or none of them can be captioned.
    """
    if arguments.num_beams < 1:
        raise UserError(f"--num_beams {arguments.num_beams} must be 1 or more")
    folder = Path(arguments.folder).expanduser()
    waiting, left_alone = _waiting(folder, arguments.overwrite)
    done = Captioned()
    if waiting:
        captioner = load_any_captioner(arguments.captioner, arguments.device)
        try:
            _caption(captioner, folder, waiting, arguments.num_beams, done)
        except KeyboardInterrupt:
            again = "" if arguments.overwrite else "; run the same command to continue"
            print(
                f"Stopped: {done.written:,} of {counted(len(waiting), 'caption')} written{again}", flush=True
            )
            raise
    if not done.written and not left_alone:
        raise UserError(f"{folder}: no image can be captioned: {done.problems.summary()}")
    had_one = f"{counted(left_alone, 'image')} already had one"
    print(f"{folder}: {counted(done.written, 'caption')} written; {had_one}")
    if done.problems.total():
        print(f"{counted(done.problems.total(), 'image')} without a caption: {done.problems.summary()}")
    print(f"Look at them: imagen-pl data inspect {shlex.quote(str(folder))}")
    return 0


def _waiting(folder: Path, overwrite: bool) -> tuple[dict[Path, Path], int]:
    """The images to caption, by their .txt file, and the number of images that keep their caption."""
    images, in_metadata = FolderSource(str(folder)).images()
    waiting: dict[Path, Path] = {}
    for image in sorted(images - in_metadata.keys()):  # metadata takes precedence over any .txt
        text = image.with_suffix(".txt")
        if overwrite or not text.is_file() or not captions_in(text):
            waiting.setdefault(text, image)  # cat.jpg and cat.png share cat.txt
    return waiting, len(images) - len(waiting)


def _caption(
    captioner: AnyCaptioner, folder: Path, waiting: dict[Path, Path], num_beams: int, done: Captioned
) -> None:
    pairs = list(waiting.items())
    with (
        quiet_pillow(),
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar("captioning", len(pairs)) as bar,
    ):
        for i in range(0, len(pairs), _BATCH):
            part = pairs[i : i + _BATCH]
            decoded = pool.map(lambda pair: _decode(pair[1], captioner), part)
            good: list[tuple[Path, Path]] = []
            images: list[Tensor] = []
            for pair, image in zip(part, decoded, strict=True):
                if isinstance(image, str):
                    _report(pair[1].relative_to(folder), "unreadable", image, done.problems)
                else:
                    good.append(pair)
                    images.append(image)
            captions = captioner.caption_batch(torch.stack(images), num_beams) if images else []
            for (text, image_file), caption in zip(good, captions, strict=True):
                if not caption.strip():
                    name = image_file.relative_to(folder)
                    _report(name, "with an empty caption", "empty caption", done.problems)
                    continue
                with atomic_write(text) as file:
                    file.write(f"{caption}\n".encode())
                done.written += 1
            bar.update(len(part))


def _decode(image: Path, captioner: AnyCaptioner) -> UInt8[Tensor, "c h w"] | str:
    """The image's pixels, or the name of the error."""
    try:
        return captioner.decode(image)
    except UNREADABLE as error:
        return type(error).__name__


def _report(name: Path, reason: str, why: str, problems: SkippedImages) -> None:
    problems.add(reason, name.as_posix())
    print_above_bars(f"{name.as_posix()} gets no caption: {why}")
