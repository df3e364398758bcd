"""`imagen-pl interpolate` and `imagen-pl edit`: other words or latents for a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.options import add_drawing_options, add_model_argument, verb_parser
from imagen_pl.cli.sample import (
    check_drawing_options,
    check_picture,
    drawing_options,
    provenance,
    with_progress,
)
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, save_picture
from imagen_pl.inference.pipeline import load


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser("edit", description="Keep the latent and change the words: pictures side by side.")
    add_model_argument(parser)
    parser.add_argument("prompt", help="before")
    parser.add_argument("--to", nargs="+", required=True, metavar="PROMPT", help="after; a column each")
    parser.add_argument("--num_images", type=int, default=4, metavar="N", help="latents (default: 4)")
    parser.add_argument(
        "--out", default="edit.png", metavar="FILE", help=".png, .webp or .jpg (default: edit.png)"
    )
    add_drawing_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return edit(make_parser().parse_args(words))


def edit(arguments: argparse.Namespace) -> int:
    """`imagen-pl edit`.

    Raises:
        UserError: the arguments do not go together.
    """
    out = Path(arguments.out)
    check_picture(out)
    if arguments.num_images < 1:
        raise UserError(f"--num_images {arguments.num_images} must be 1 or more")
    check_drawing_options(arguments)
    model = load(arguments.model, arguments.device)
    prompts = [arguments.prompt, *arguments.to]
    pairs = [(prompt, arguments.seed + k) for k in range(arguments.num_images) for prompt in prompts]
    pictures = list(with_progress(model.draw(pairs, **drawing_options(arguments)), len(pairs)))
    sheet = labelled_grid(pictures, [prompt for prompt, _ in pairs], columns=len(prompts))
    about = {"prompt": arguments.prompt, "to": "\n".join(arguments.to), "seed": arguments.seed}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet, out, {**about, **provenance(model, arguments)})
    print(f"{out}: a row a latent, seeds from {arguments.seed}; the first column is {arguments.prompt!r}")
    return 0
