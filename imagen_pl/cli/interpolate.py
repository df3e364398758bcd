"""`imagen-pl interpolate`: an animation from one prompt or latent to the next."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

from imagen_pl.cli.cascade import open_cascade
from imagen_pl.cli.drawing import check_prompts, with_refinement_progress
from imagen_pl.cli.options import (
    add_model_argument,
    add_sampling_options,
    add_upscaler_argument,
    sampling_options,
    verb_parser,
)
from imagen_pl.errors import UserError


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "interpolate",
        description="Write an animation that goes from one prompt, or latent, to the next.",
        notes="At each prompt, the frame is the picture that `sample --refine 0` draws. Frames are refined "
        "independently, so --refine makes an animation less smooth.",
    )
    add_model_argument(parser)
    parser.add_argument("prompt", nargs="+", help="the prompts, in order")
    parser.add_argument(
        "--num_latents", type=int, default=1, metavar="N", help="latents per prompt (default: 1)"
    )
    parser.add_argument(
        "--frames", type=int, default=24, metavar="N", help="frames from one latent to the next (default: 24)"
    )
    parser.add_argument("--fps", type=float, default=12.0, metavar="N", help="frames a second (default: 12)")
    parser.add_argument("--loop", action="store_true", help="return to the first prompt and repeat forever")
    parser.add_argument(
        "--out", default="film.gif", metavar="FILE", help=".gif, .webp or .mp4 (default: film.gif)"
    )
    add_upscaler_argument(parser)
    add_sampling_options(parser, refine=0)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return interpolate_prompts(make_parser().parse_args(words))


def interpolate_prompts(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: there are fewer than two prompts or latents, or the file format cannot be written.
    """
    out = Path(arguments.out)
    if arguments.num_latents < 1:
        raise UserError(f"--num_latents {arguments.num_latents} must be 1 or more")
    check_prompts(arguments.prompt)
    options = sampling_options(arguments)
    keyframes = [
        (prompt, options.seed + k) for prompt in arguments.prompt for k in range(arguments.num_latents)
    ]
    if len(keyframes) < 2:
        raise UserError("give two or more prompts, or one prompt with --num_latents 2 or more")
    from imagen_pl.imaging.animation import check_animation, write_animation

    check_animation(out, arguments.fps)
    cascade = open_cascade(arguments, options)
    from imagen_pl.inference.interpolation import interpolate

    total = (
        arguments.frames * len(keyframes) if arguments.loop else arguments.frames * (len(keyframes) - 1) + 1
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    frames = with_refinement_progress(
        lambda on_step: interpolate(
            cascade.model,
            keyframes,
            arguments.frames,
            arguments.loop,
            **options.drawing(),
            on_step=on_step,
        ),
        total,
        cascade.model.refine_steps(options.refine),
        " frames",
    )
    # Without a caption, since frames show something between two prompts.
    large = cascade.enlarge(frames, repeat(("", options.seed)))
    count = write_animation(large, out, arguments.fps, arguments.loop)
    print(f"{out}: {count} frames, {count / arguments.fps:.1f} s")
    return 0
