"""`imagen-pl variants`: a subject in every style, to choose from."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.options import add_drawing_options, add_model_argument, verb_parser
from imagen_pl.cli.sample import check_drawing, check_picture, drawing_options, provenance, with_progress
from imagen_pl.data.sources.declaration import declaration_of
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, save_picture
from imagen_pl.inference.pipeline import TextToImage, load


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "variants",
        description="Draw a subject in every style, side by side, to choose from.",
        notes="Pictures of one seed share a latent, whatever the style.",
    )
    add_model_argument(parser)
    parser.add_argument("subject", nargs="+", help='as "cupcake"; a row each')
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
        help='how a prompt is made of both (default: "{subject}, {style} style")',
    )
    parser.add_argument("--num_images", type=int, default=4, metavar="N", help="of each (default: 4)")
    parser.add_argument(
        "--out", default="variants.png", metavar="FILE", help=".png, .webp or .jpg (default: variants.png)"
    )
    add_drawing_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return variants(make_parser().parse_args(words))


def variants(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says.

    Raises:
        UserError: the arguments do not go together, or the model's styles are not known.
    """
    out, n = Path(arguments.out), arguments.num_images
    check_picture(out)
    check_drawing(arguments)
    for part in ("{subject}", "{style}"):
        if part not in arguments.wording:
            raise UserError(f'--wording "{arguments.wording}" lacks {part}')
    model = load(arguments.model, arguments.device)
    styles = arguments.styles or _styles_of(model)
    prompts = [
        # Not format(): a subject may hold braces, and so may the wording.
        arguments.wording.replace("{style}", style).replace("{subject}", subject)
        for subject in arguments.subject
        for style in styles
    ]
    seeds = range(arguments.seed, arguments.seed + n)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = list(with_progress(model.draw(pairs, **drawing_options(arguments)), len(pairs)))
    labels, side = [f"seed {seed}" for seed in seeds], math.ceil(math.sqrt(n))
    cells = [labelled_grid(pictures[i : i + n], labels, side) for i in range(0, len(pictures), n)]
    grid = labelled_grid(cells, prompts, columns=len(styles))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(
        grid, out, {"prompt": "\n".join(prompts), "seed": arguments.seed, **provenance(model, arguments)}
    )
    print(f"{out}: a row a subject; columns {', '.join(styles)}; seeds from {arguments.seed}")
    return 0


def _styles_of(model: TextToImage) -> list[str]:
    """The styles that the model's data source declares."""
    styles = declaration_of(model.description.get("data")).styles
    if not styles:
        raise UserError("name the styles with --styles: the model's data source declares none")
    return list(styles)
