"""Does a model understand its prompts? 200 of them, of eight kinds, each scored by a rule.

    python -m benchmarks.words runs/quickstart
    python -m benchmarks.words runs/a runs/b --extractor efficientnet_lite1 --out words/

Prints a Markdown table, the share of prompts that come out right by kind, and writes words.json and a grid
of pictures for each model, right and wrong ones marked, to look at. benchmarks/prompts.jsonl says of
each prompt what is right:

    like        the picture is among the five nearest to this caption's real image, of 100 of its style
    colour      more of the picture is of this colour than of any other, of ten
    not_colour  another colour leads
    tone        its mean colour is nearer to the real image of this skin tone than to those of the other four
    count       it shows so many things apart from each other

"style" is the share of all prompts that name one whose picture is in that style, by a linear rule on the
features of real images. The row of real images, where there is one for a prompt, says how far the rules can
be trusted ("like" is true of them by itself and left out); in brackets is what a model's pictures score for
other prompts of the same kind, which is what one gets without reading.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageCms
from scipy import ndimage
from torch import Tensor

import imagen_pl
from benchmarks.protocol import ReferenceSet, extract, make_reference, shrink
from benchmarks.quality import EXTRACTORS, check_teachers
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.build_emoji import SHIPPED, STYLES
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.storage.atomic_files import atomic_write

Picture = UInt8[Tensor, "3 r r"]

PROMPTS = Path(__file__).parent / "prompts.jsonl"
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
# As emoji have them.
COLOURS = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (253, 203, 88),
    "green": (90, 170, 75),
    "blue": (65, 140, 230),
    "purple": (150, 90, 200),
    "pink": (240, 130, 180),
    "brown": (150, 95, 60),
    "black": (45, 47, 52),
    "grey": (140, 148, 158),
}
_WHITE = 225  # a pixel whose every channel is above is background
_SPECK = 0.01  # a thing takes at least this share of the picture
_FIRST = 5
_OF = 100


@dataclass(frozen=True)
class Prompt:
    """A prompt and what is right for it; see the top of this file."""

    kind: str
    prompt: str
    like: str | None = None
    colour: str | None = None
    not_colour: str | None = None
    tone: str | None = None
    count: int | None = None

    @property
    def style(self) -> str | None:
        """The style that it names."""
        return next((style for style in STYLES if self.prompt.endswith(f", {style} style")), None)


def read_prompts(file: Path = PROMPTS) -> list[Prompt]:
    return [Prompt(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------ the rules


def thing(picture: Picture) -> Bool[Tensor, "r r"]:
    """Pixels that are no background."""
    return picture.amin(0) < _WHITE


def leading_colour(picture: Picture) -> str | None:
    """The colour that most of a picture's pixels are nearest to, in CIELAB; None for an empty picture."""
    pixels = picture[:, thing(picture)]
    if not pixels.numel():
        return None
    gaps = torch.cdist(_lab(pixels.T), _lab(torch.tensor(list(COLOURS.values()), dtype=torch.uint8)))
    return list(COLOURS)[int(gaps.argmin(1).bincount(minlength=len(COLOURS)).argmax())]


def _lab(pixels: UInt8[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    row = Image.fromarray(pixels.contiguous().numpy()[None])
    lab = np.array(ImageCms.applyTransform(row, _TO_LAB))[0]
    # Two of the three are signed.
    signed = lab.astype(np.float32)
    signed[:, 1:] = lab[:, 1:].astype(np.int8)
    signed[:, 0] *= 100 / 255
    return torch.from_numpy(signed)


_TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def count_things(picture: Picture) -> int:
    """Parts that are apart from each other, corners counting as contact, without specks."""
    parts, number = ndimage.label(thing(picture).numpy(), structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    return int((sizes >= _SPECK * parts.size).sum())


def mean_colour(picture: Picture) -> Float[Tensor, " 3"]:
    """Of what is no background; white where there is nothing."""
    pixels = picture[:, thing(picture)]
    return pixels.float().mean(1) if pixels.numel() else torch.full((3,), 255.0)


@dataclass
class PromptJudge:
    """Says what is right, held against the shipped emoji.

    reference: one real image a subject and style, and their features.
    """

    reference: ReferenceSet
    places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {picture.caption: row for row, picture in enumerate(self.reference.pictures)}

    def right(self, prompt: Prompt, picture: Picture, features: Float[Tensor, " f"]) -> bool:
        """Whether a picture is right for a prompt."""
        if prompt.tone is not None:
            return self._tone(prompt, picture)
        if prompt.count is not None:
            return count_things(picture) == prompt.count
        if prompt.colour is not None:
            return leading_colour(picture) == prompt.colour
        if prompt.not_colour is not None:
            return leading_colour(picture) not in (None, prompt.not_colour)
        assert prompt.like is not None
        return self._like(prompt.like, features)

    def _like(self, caption: str, features: Float[Tensor, " f"]) -> bool:
        place = self.places[caption]
        style = self.reference.pictures[place].style
        others = [i for i, p in enumerate(self.reference.pictures) if p.style == style and i != place]
        # The same for every model, and other ones for every prompt.
        rivals = np.random.default_rng(place).choice(others, _OF - 1, replace=False)
        rows = torch.tensor([place, *rivals.tolist()])
        mean = self.reference.features.mean(0)
        near = F.cosine_similarity(self.reference.features[rows] - mean, (features - mean)[None], dim=1)
        return int((near[1:] >= near[0]).sum()) < _FIRST

    def _tone(self, prompt: Prompt, picture: Picture) -> bool:
        own = mean_colour(picture)
        gaps = [(own - mean_colour(self.real(c))).norm() for c in self._in_all_tones(prompt)]
        return TONES[int(torch.stack(gaps).argmin())] == prompt.tone

    @staticmethod
    def _in_all_tones(prompt: Prompt) -> list[str]:
        return [prompt.prompt.replace(f": {prompt.tone} skin", f": {tone} skin") for tone in TONES]

    # -------------------------------------------------------------- real images

    @cached_property
    def _encoded(self) -> dict[str, bytes]:
        from pyarrow import parquet

        table = parquet.read_table(SHIPPED, columns=["caption", "image"])
        return {row["caption"]: row["image"]["bytes"] for row in table.to_pylist()}

    def real(self, caption: str) -> Picture:
        """The real image of a caption."""
        return shrink(decode(self._encoded[caption], 64)[None], self.reference.resolution)[0]

    def real_for(self, prompt: Prompt) -> Picture | None:
        """The real image for a prompt that a rule on pixels is for, where there is one."""
        on_pixels = (prompt.tone, prompt.count, prompt.colour, prompt.not_colour) != (None,) * 4
        return self.real(prompt.prompt) if on_pixels and prompt.prompt in self._encoded else None

    @cached_property
    def style_rule(self) -> tuple[Float[Tensor, " f"], Float[Tensor, "f s"]]:
        """Mean and directions of a ridge regression from real images of train to their style."""
        rows = [i for i, p in enumerate(self.reference.pictures) if p.split == "train"]
        wanted = torch.tensor([STYLES.index(self.reference.pictures[i].style) for i in rows])
        x = self.reference.features[rows].double()
        mean = x.mean(0)
        x = x - mean
        square = x.T @ x
        ridge = 0.1 * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
        y = F.one_hot(wanted, len(STYLES)).double() - 1 / len(STYLES)
        return mean, torch.linalg.solve(square + ridge, x.T @ y)

    def style_of(self, features: Float[Tensor, "n f"]) -> list[str]:
        """The style of each picture."""
        mean, directions = self.style_rule
        return [STYLES[i] for i in ((features.double() - mean) @ directions).argmax(1).tolist()]


# ------------------------------------------------------------------ a model's marks


@dataclass(frozen=True)
class Marks:
    """right: of each prompt, None where it was not asked. shuffled: for another prompt of its kind."""

    name: str
    right: list[bool | None]
    shuffled: list[bool | None]
    style: float


def mark(
    judge: PromptJudge, name: str, prompts: Sequence[Prompt], pictures: Sequence[Picture], features: Tensor
) -> Marks:
    """Marks of pictures, one for each prompt."""
    right = [judge.right(*each) for each in zip(prompts, pictures, features, strict=True)]
    turned = turn_within_kinds(prompts)
    shuffled = [judge.right(prompts[i], pictures[k], features[k]) for i, k in enumerate(turned)]
    found = zip(judge.style_of(features), prompts, strict=True)
    named = [style == prompt.style for style, prompt in found if prompt.style is not None]
    return Marks(name, list(right), list(shuffled), sum(named) / len(named))


def mark_real(judge: PromptJudge, prompts: Sequence[Prompt]) -> Marks:
    """Marks of the real images by the rules on pixels, and of their styles, those of test."""
    real = [judge.real_for(prompt) for prompt in prompts]
    nothing = torch.zeros(judge.reference.features.shape[1])
    right = [None if x is None else judge.right(p, x, nothing) for p, x in zip(prompts, real, strict=True)]
    rows = [i for i, p in enumerate(judge.reference.pictures) if p.split == "test"]
    styles = judge.style_of(judge.reference.features[rows])
    hits = [style == judge.reference.pictures[i].style for style, i in zip(styles, rows, strict=True)]
    return Marks("real images", right, [None] * len(prompts), sum(hits) / len(hits))


def turn_within_kinds(prompts: Sequence[Prompt]) -> list[int]:
    """For each prompt another one of its kind, half a turn on."""
    turned = list(range(len(prompts)))
    for kind in dict.fromkeys(p.kind for p in prompts):
        rows = [i for i, p in enumerate(prompts) if p.kind == kind]
        for i, k in zip(rows, np.roll(rows, len(rows) // 2), strict=True):
            turned[i] = int(k)
    return turned


def table(prompts: Sequence[Prompt], marks: Sequence[Marks]) -> str:
    kinds = {kind: [i for i, p in enumerate(prompts) if p.kind == kind] for kind in _kinds(prompts)}
    head = [f"{kind} ({len(rows)})" for kind, rows in kinds.items()]
    lines = ["| | " + " | ".join([*head, "style named"]) + " |", "|---|" + "---|" * (len(head) + 1)]
    for m in marks:
        cells = []
        for rows in kinds.values():
            right, shuffled = (_share([x[i] for i in rows]) for x in (m.right, m.shuffled))
            cells.append(f"{right} ({shuffled})" if right and shuffled else right)
        lines.append(f"| {m.name} | " + " | ".join([*cells, f"{m.style:.0%}"]) + " |")
    return "\n".join(lines)


def _kinds(prompts: Sequence[Prompt]) -> list[str]:
    return list(dict.fromkeys(p.kind for p in prompts))


def _share(right: Sequence[bool | None]) -> str:
    asked = [x for x in right if x is not None]
    return f"{sum(asked) / len(asked):.0%}" if asked else ""


def grid(prompts: Sequence[Prompt], pictures: Sequence[Picture], marks: Marks) -> Image.Image:
    labels = [f"{'✓' if right else '✗'} {p.prompt}" for p, right in zip(prompts, marks.right, strict=True)]
    return labelled_grid(to_pil(torch.stack(list(pictures))), labels, columns=10)


# ------------------------------------------------------------------ the command


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="run folders, checkpoints or releases")
    parser.add_argument("--out", type=Path, default=Path("words"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default: 0)")
    parser.add_argument(
        "--extractor", choices=EXTRACTORS, default="efficientnet_lite0", help="whose features"
    )
    options = parser.parse_args()
    try:
        run(options.models, options.out, options.seed, EXTRACTORS[options.extractor]())
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def run(models: list[Path], out: Path, seed: int, extractor: Extractor) -> None:
    prompts = read_prompts()
    loaded = [(path, imagen_pl.load(path, device="cpu")) for path in models]
    for path, model in loaded:
        check_teachers(path, model, extractor)
    resolution = min(64, *(model.resolution for _, model in loaded))
    judge = PromptJudge(make_reference(extractor, resolution, seed))
    marks = [mark_real(judge, prompts)]
    for number, (path, model) in enumerate(loaded):
        pairs = [(p.prompt, seed + k) for k, p in enumerate(prompts)]
        drawn = torch.stack(
            [torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in model.draw(pairs, refine=0)]
        )
        pictures = shrink(drawn, resolution)
        marks.append(mark(judge, str(path), prompts, list(pictures), extract(extractor, pictures, str(path))))
        out.mkdir(parents=True, exist_ok=True)
        grid(prompts, list(pictures), marks[-1]).save(out / f"words-{number}.png")
    print(f"{extractor.name} features, {resolution} px, seed {seed}, {len(prompts)} prompts\n")
    print(table(prompts, marks))
    entries = [{"name": m.name, "style": m.style, "right": m.right, "shuffled": m.shuffled} for m in marks]
    about = {"extractor": extractor.name, "resolution": resolution, "seed": seed, "git": git_state()}
    with atomic_write(out / "words.json") as file:
        file.write((json.dumps({**about, "models": entries}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
