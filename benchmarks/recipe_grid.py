"""A picture that compares models: a row a model, eight seeds of each prompt.

    python -m benchmarks.recipe_grid runs/dcgan runs/quickstart --prompts "red heart, fluent style" \
        --out docs/classic-gans.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

import imagen_pl
from imagen_pl.imaging.grids import font, strip

SEEDS, SIDE, GAP, LABEL = 8, 48, 12, 110


def draw(models: Sequence[str], names: Sequence[str], prompts: Sequence[str]) -> Image.Image:
    """The grid: the name of each model on the left, the prompts above."""
    rows = []
    for path in models:
        model = imagen_pl.load(path)
        rows.append([strip(model.sample(p, seed=0, num_images=SEEDS, refine=0), SIDE) for p in prompts])
    width, height = rows[0][0].size
    face = font(13)
    size = (LABEL + len(prompts) * (width + GAP), 20 + len(rows) * (height + 4))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        pen.text((LABEL + column * (width + GAP), 2), prompt, fill="#222222", font=face)
    for number, (name, strips) in enumerate(zip(names, rows, strict=True)):
        top = 20 + number * (height + 4)
        pen.text((4, top + height // 2 - 8), name, fill="#222222", font=face)
        for column, picture in enumerate(strips):
            sheet.paste(picture, (LABEL + column * (width + GAP), top))
    return sheet


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="runs, checkpoints or releases, at one resolution")
    parser.add_argument("--names", nargs="+", help="names of the rows (default: the last part of each path)")
    parser.add_argument("--prompts", nargs="+", required=True, help="what to draw, eight seeds each")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file")
    args = parser.parse_args(words)
    names = args.names or [Path(model).name for model in args.models]
    if len(names) != len(args.models):
        parser.error(f"{len(args.models)} models but {len(names)} names")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # 256 colours are enough for a comparison, and make a third of the file.
    draw(args.models, names, args.prompts).quantize(256).save(args.out, optimize=True)
    print(f"{args.out}: {len(names)} models, {len(args.prompts)} prompts, {SEEDS} seeds each")


if __name__ == "__main__":
    main()
