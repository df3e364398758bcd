"""`imagen-pl interpolate` and `imagen-pl edit`: other words or latents for a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from imagen_pl.errors import UserError
from imagen_pl.films import check_film, write_film
from imagen_pl.inference import load
from imagen_pl.interpolation import interpolate
from imagen_pl.pictures import labelled_grid, save_picture
from imagen_pl.sampling import check_how_drawn, check_picture, facts, how_drawn, watched


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
    check_how_drawn(arguments)
    model = load(arguments.model, arguments.device)
    steps = interpolate(model, keyframes, arguments.frames, arguments.loop, **how_drawn(arguments))
    total = arguments.frames * (len(keyframes) if arguments.loop else len(keyframes) - 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    count = write_film(watched(steps, total), out, arguments.fps, arguments.loop)
    print(f"{out}: {count} frames, {count / arguments.fps:.1f} s")
    return 0


def edit(arguments: argparse.Namespace) -> int:
    """`imagen-pl edit`.

    Raises:
        UserError: the arguments do not go together.
    """
    out = Path(arguments.out)
    check_picture(out)
    if arguments.num_images < 1:
        raise UserError(f"--num_images {arguments.num_images} must be 1 or more")
    check_how_drawn(arguments)
    model = load(arguments.model, arguments.device)
    prompts = [arguments.prompt, *arguments.to]
    pairs = [(prompt, arguments.seed + k) for k in range(arguments.num_images) for prompt in prompts]
    pictures = list(watched(model.draw(pairs, **how_drawn(arguments)), len(pairs)))
    sheet = labelled_grid(pictures, [prompt for prompt, _ in pairs], columns=len(prompts))
    about = {"prompt": arguments.prompt, "to": "\n".join(arguments.to), "seed": arguments.seed}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet, out, {**about, **facts(model, arguments)})
    print(f"{out}: a row a latent, seeds from {arguments.seed}; the first column is {arguments.prompt!r}")
    return 0
