"""`imagen-pl edit`: the same latents with another prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.drawing import (
    check_num_images,
    check_picture_path,
    check_prompts,
    draw_with_progress,
    provenance,
)
from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_model_argument, add_sampling_options, sampling_options, verb_parser


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "edit",
        description="Draw a prompt and changed versions of it from the same latents, side by side.",
    )
    add_model_argument(parser)
    parser.add_argument("prompt", help="the first prompt")
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="PROMPT", help="changed prompts; one column each"
    )
    parser.add_argument(
        "--num_images",
        type=int,
        default=4,
        metavar="N",
        help="pictures per prompt, one row for each latent (default: 4)",
    )
    parser.add_argument(
        "--out", default="edit.png", metavar="FILE", help=".png, .webp or .jpg (default: edit.png)"
    )
    add_sampling_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return edit(make_parser().parse_args(words))


def edit(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, or a prompt is empty.
    """
    out, prompts = Path(arguments.out), [arguments.prompt, *arguments.to]
    check_picture_path(out)
    check_num_images(arguments.num_images)
    check_prompts(prompts)
    options = sampling_options(arguments)
    from imagen_pl.imaging.grids import labelled_grid, save_picture

    model = open_model(arguments.model, options.device, arguments.resolution)
    pairs = [(prompt, options.seed + k) for k in range(arguments.num_images) for prompt in prompts]
    pictures = list(draw_with_progress(model, pairs, options))
    grid = labelled_grid(pictures, [prompt for prompt, _ in pairs], columns=len(prompts))
    drawn = {"prompt": arguments.prompt, "to": "\n".join(arguments.to), "seed": options.seed}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(grid, out, {**drawn, **provenance(model, arguments.model, options)})
    print(f"{out}: one row per latent, seeds from {options.seed}; the first column is {arguments.prompt!r}")
    return 0
