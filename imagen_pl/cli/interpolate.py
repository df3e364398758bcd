"""`imagen-pl interpolate`: a film from one prompt or latent to the next."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.options import add_drawing_options, add_model_argument, verb_parser
from imagen_pl.cli.sample import (
    check_drawing_options,
    drawing_options,
    with_progress,
)
from imagen_pl.errors import UserError
from imagen_pl.imaging.animation import check_film, write_film
from imagen_pl.inference.interpolation import interpolate
from imagen_pl.inference.pipeline import load


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "interpolate",
        description="Go from one prompt to the next, or from one latent to the next, in a film.",
        notes="The first and the last frame of a stretch are the pictures that `sample` draws.",
    )
    add_model_argument(parser)
    parser.add_argument("prompt", nargs="+", help="where to go, in this order")
    parser.add_argument(
        "--num_latents", type=int, default=1, metavar="N", help="latents of each prompt (default: 1)"
    )
    parser.add_argument(
        "--frames", type=int, default=24, metavar="N", help="from one to the next (default: 24)"
    )
    parser.add_argument("--fps", type=float, default=12.0, metavar="N", help="frames a second (default: 12)")
    parser.add_argument("--loop", action="store_true", help="go back to the first, and on for ever")
    parser.add_argument(
        "--out", default="film.gif", metavar="FILE", help=".gif, .webp or .mp4 (default: film.gif)"
    )
    add_drawing_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return film(make_parser().parse_args(words))


def film(arguments: argparse.Namespace) -> int:
    """`imagen-pl interpolate`.

    Raises:
        UserError: the arguments do not go together, or a film of this kind cannot be written.
    """
    out = Path(arguments.out)
    check_film(out, arguments.fps)
    if arguments.num_latents < 1:
        raise UserError(f"--num_latents {arguments.num_latents} must be 1 or more")
    keyframes = [
        (prompt, arguments.seed + k) for prompt in arguments.prompt for k in range(arguments.num_latents)
    ]
    if len(keyframes) < 2:
        raise UserError("name two prompts or more to go between, or give one with --num_latents 2 or more")
    check_drawing_options(arguments)
    model = load(arguments.model, arguments.device)
    steps = interpolate(model, keyframes, arguments.frames, arguments.loop, **drawing_options(arguments))
    total = arguments.frames * (len(keyframes) if arguments.loop else len(keyframes) - 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    count = write_film(with_progress(steps, total), out, arguments.fps, arguments.loop)
    print(f"{out}: {count} frames, {count / arguments.fps:.1f} s")
    return 0
