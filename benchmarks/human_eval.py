"""A blind recognition test: what a reader sees in a model's pictures of held-out captions.

    python -m benchmarks.human_eval sheet emoji --out reading/
    python -m benchmarks.human_eval score reading/ answers.txt
    python -m benchmarks.human_eval sheet emoji --split composition
    python -m benchmarks.human_eval sheet nearest
    python -m benchmarks.human_eval sheet icons --icons imagen_pl/data/shipped/icons64

The first writes reader/, to give away: sheet.png, pictures under numbers, the model's and real ones mixed,
and choices.txt, ten names of the split's subjects for each, the right one among them; and key.json, to keep.
Subjects of `test` were not trained on; those of `composition` were, in another style. `nearest` in place of a
model shows the real image of the training caption that is nearest in words, of the style in the prompt: the
score of a model that only remembers. With --icons the pictures are icons of the eight largest sets, and the
prompt is the subject alone, such as "bell". The reader writes a line for each number,
what is seen in his own words, then the name he chooses:

    17: a yellow cup | teapot

The second prints the share of right choices (by chance 10%), the model's beside that of real images, which
is what the reader and the size of the pictures allow, and his own words beside the names.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import imagen_pl
from benchmarks.icon_reference import SETS, is_new, learnt_forms
from benchmarks.protocol import SIZE, Picture, nearest_captions, read_pictures, shrink
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil

DRAWN, REAL = 60, 20
# In place of a model.
NEAREST = "nearest"
_CHOICES = 10
_COLUMNS = 8
_LINE = re.compile(r"\s*(\d+)\s*:(.*)\|(.*)")


@dataclass(frozen=True)
class SheetPicture:
    """One picture of the sheet; `name` is the right one of `choices`, `source` is "model" or "real"."""

    caption: str
    name: str
    source: str
    choices: list[str]


def read_icons(folder: Path) -> tuple[list[Picture], list[bytes]]:
    """The icons of the eight largest sets. Their style is the set; their caption is the subject alone.

    Test icons whose subject was learnt under another form of its name are left out.
    """
    rows = IconSource(str(folder)).icon_rows()
    largest = [name for name, _ in Counter(row.set for row in rows).most_common(SETS)]
    learnt = learnt_forms(rows)
    kept = [row for row in rows if row.set in largest and (row.split != "test" or is_new(row.words, learnt))]
    pictures = [Picture(row.words, row.words, row.set, row.split, i) for i, row in enumerate(kept)]
    return pictures, [row.image for row in kept]


def draw_lots(pictures: list[Picture], split: str, seed: int) -> list[tuple[SheetPicture, int]]:
    """Captions of the split with their rows of `pictures`: no subject twice, the styles in turn."""
    styles = sorted({picture.style for picture in pictures})
    lots = np.random.default_rng(seed)
    held = [(row, picture) for row, picture in enumerate(pictures) if picture.split == split]
    names = {picture.subject: name_of(picture) for _, picture in held}
    found: list[tuple[SheetPicture, int]] = []
    taken: set[str] = set()
    for k in range(DRAWN + REAL):
        style = styles[k % len(styles)]
        new = [(row, p) for row, p in held if p.subject not in taken]
        left = [(row, p) for row, p in new if p.style == style] or new
        row, picture = left[int(lots.integers(len(left)))]
        taken.add(picture.subject)
        name = names[picture.subject]
        others = lots.choice(sorted(set(names.values()) - {name}), _CHOICES - 1, replace=False)
        choices = [str(choice) for choice in lots.permutation([name, *others])]
        source = "model" if k < DRAWN else "real"
        found.append((SheetPicture(picture.caption, name, source, choices), row))
    return [found[i] for i in lots.permutation(len(found))]


def name_of(picture: Picture) -> str:
    """The caption without its style."""
    return picture.caption.removesuffix(f", {picture.style} style")


def write_sheet(
    model: str, out: Path, seed: int, refine: int = 0, split: str = "test", icons: Path | None = None
) -> None:
    if model == NEAREST and refine:
        raise UserError("--refine is for a model: real images stay as they are")
    if model == NEAREST and icons:
        raise UserError("nearest is for emoji: leave out --icons")
    pictures, encoded = read_icons(icons) if icons else read_pictures()
    lots = draw_lots(pictures, split, seed)
    asked = [row for shown, row in lots if shown.source == "model"]
    side, drawn = answers_of(model, asked, pictures, encoded, seed, refine)
    shown_ones = [next(drawn) if shown.source == "model" else real(encoded[row], side) for shown, row in lots]
    reader = out / "reader"
    reader.mkdir(parents=True, exist_ok=True)
    numbers = [str(k) for k in range(1, len(lots) + 1)]
    labelled_grid(shown_ones, numbers, _COLUMNS).save(reader / "sheet.png")
    choice_lines = [f"{k}: {', '.join(shown.choices)}\n" for k, (shown, _) in zip(numbers, lots, strict=True)]
    (reader / "choices.txt").write_text("".join(choice_lines))
    key = {k: asdict(shown) for k, (shown, _) in zip(numbers, lots, strict=True)}
    about = {"model": model, "split": split, "seed": seed, "refine": refine}
    about |= {"icons": icons.name} if icons else {}
    (out / "key.json").write_text(json.dumps(about | {"pictures": key}, indent=1))


def answers_of(
    model: str, asked: list[int], pictures: list[Picture], encoded: list[bytes], seed: int, refine: int
) -> tuple[int, Iterator[Image.Image]]:
    """Side in pixels of what stands for the captions of these rows, and the pictures one by one."""
    if model == NEAREST:
        return SIZE, (real(encoded[row], SIZE) for row in nearest_captions(pictures, asked))
    drawer = imagen_pl.load(model, device="cpu")
    # A seed of its own for each: one seed gives all icons the same colour, size and fill.
    captions = [(pictures[row].caption, seed + k) for k, row in enumerate(asked)]
    return int(drawer.resolution), drawer.draw(captions, refine=refine)


def real(data: bytes, side: int) -> Image.Image:
    return to_pil(shrink(torch.stack([decode(data, max(SIZE, side))]), side))[0]


def read_answers(file: Path, key: dict[str, SheetPicture]) -> dict[str, tuple[str, str]]:
    """For each number the reader's own words and his choice."""
    answers: dict[str, tuple[str, str]] = {}
    for line in filter(str.strip, file.read_text().splitlines()):
        read = _LINE.fullmatch(line)
        number, words, choice = (part.strip() for part in read.groups()) if read else ("", "", "")
        if number not in key or choice not in key[number].choices:
            raise UserError(
                f"{file}: {line!r} is not `number: own words | name`, the name one of the number's own"
            )
        answers[number] = (words, choice)
    if missing := [number for number in key if number not in answers]:
        raise UserError(f"{file} has no answer to {', '.join(missing)}")
    return answers


def read_key(out: Path) -> dict[str, SheetPicture]:
    return {
        k: SheetPicture(**shown)
        for k, shown in json.loads((out / "key.json").read_text())["pictures"].items()
    }


def table(key: dict[str, SheetPicture], answers: dict[str, tuple[str, str]]) -> str:
    lines = ["| pictures | number | right of ten |", "|---|---|---|"]
    for source in ("model", "real"):
        right = [answers[k][1] == shown.name for k, shown in key.items() if shown.source == source]
        share = sum(right) / len(right)
        error = math.sqrt(share * (1 - share) / len(right))
        lines.append(f"| {source} | {len(right)} | {100 * share:.0f}% ± {100 * error:.0f}% |")
    lines += ["", "| shows | | in the reader's words | chosen |", "|---|---|---|---|"]
    for k, shown in sorted(key.items(), key=lambda item: item[1].source):
        words, choice = answers[k]
        lines.append(f"| {shown.name} | {shown.source} | {words} | {choice} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    sheet = verbs.add_parser("sheet", help="draw, and write what the reader gets")
    sheet.add_argument("model", help="a run's folder, a checkpoint, a release, or `nearest`")
    sheet.add_argument("--out", type=Path, default=Path("reading"), help="default: %(default)s")
    sheet.add_argument(
        "--split", choices=["test", "composition"], default="test", help="default: %(default)s"
    )
    sheet.add_argument(
        "--seed", type=int, default=0, help="which subjects; picture k has the latent of this seed + k"
    )
    sheet.add_argument("--refine", type=int, default=0, help="steps towards the prior's guess")
    sheet.add_argument("--icons", type=Path, help="folder of icons, in place of the emoji")
    judged = verbs.add_parser("score", help="print what the reader got right")
    judged.add_argument("out", type=Path, help="what `sheet` wrote")
    judged.add_argument("answers", type=Path)
    said = parser.parse_args()
    try:
        if said.verb == "sheet":
            write_sheet(said.model, said.out, said.seed, said.refine, said.split, said.icons)
        else:
            key = read_key(said.out)
            print(table(key, read_answers(said.answers, key)))
    except UserError as wrong:
        raise SystemExit(f"error: {wrong}") from None


if __name__ == "__main__":
    main()
