"""`imagen-pl variants`: subjects in every style, side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.cascade import open_cascade
from imagen_pl.cli.drawing import (
    check_num_images,
    check_picture_path,
    check_prompts,
)
from imagen_pl.cli.options import (
    add_model_argument,
    add_sampling_options,
    add_upscaler_argument,
    sampling_options,
    verb_parser,
)
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "variants",
        description="Draw subjects in every style, side by side.",
        notes="Pictures with the same seed have the same latent in every style.",
    )
    add_model_argument(parser)
    parser.add_argument("subject", nargs="+", help='for example "cupcake"; one row each')
    parser.add_argument(
        "--styles",
        nargs="+",
        metavar="STYLE",
        help="one column each (default: the styles that the model's data source declares: fluent, noto and "
        "twemoji for the emoji)",
    )
    parser.add_argument(
        "--wording",
        default="{subject}, {style} style",
        metavar="TEXT",
        help='template of the prompts (default: "{subject}, {style} style")',
    )
    parser.add_argument(
        "--num_images", type=int, default=4, metavar="N", help="pictures per subject and style (default: 4)"
    )
    parser.add_argument(
        "--out", default="variants.png", metavar="FILE", help=".png, .webp or .jpg (default: variants.png)"
    )
    add_upscaler_argument(parser)
    add_sampling_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return variants(make_parser().parse_args(words))


def variants(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, or the model's styles are not known.
    """
    out, n = Path(arguments.out), arguments.num_images
    check_picture_path(out)
    check_num_images(n)
    check_prompts(arguments.subject)
    options = sampling_options(arguments)
    for part in ("{subject}", "{style}"):
        if part not in arguments.wording:
            raise UserError(f'--wording "{arguments.wording}" must contain {part}')
    from imagen_pl.imaging.grids import labelled_grid, save_picture

    cascade = open_cascade(arguments, options)
    styles = arguments.styles or _styles_of(cascade.model)
    prompts = [
        # Not format(): a subject may hold braces, and so may the wording.
        arguments.wording.replace("{style}", style).replace("{subject}", subject)
        for subject in arguments.subject
        for style in styles
    ]
    seeds = range(options.seed, options.seed + n)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = list(cascade.draw(pairs))
    labels, side = [f"seed {seed}" for seed in seeds], math.ceil(math.sqrt(n))
    cells = [labelled_grid(pictures[i : i + n], labels, side) for i in range(0, len(pictures), n)]
    grid = labelled_grid(cells, prompts, columns=len(styles))
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = {"prompt": "\n".join(prompts), "seed": options.seed}
    save_picture(grid, out, {**drawn, **cascade.about()})
    print(f"{out}: one row per subject; columns {', '.join(styles)}; seeds from {options.seed}")
    return 0


def _styles_of(model: TextToImage) -> list[str]:
    """The styles that the model's data source declares."""
    from imagen_pl.data.sources.declaration import declaration_of

    styles = declaration_of(model.description.get("data")).styles
    if not styles:
        raise UserError("name the styles with --styles: the model's data source declares none")
    return list(styles)
