"""`imagen-pl edit`: the same latents with another prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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
from imagen_pl.cli.project import add_projection_options, check_projection, project_pictures, read_pictures
from imagen_pl.errors import UserError
from imagen_pl.inference.sampling_options import SamplingOptions


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "edit",
        description="Draw a prompt and changed versions of it from the same latents, side by side; or a "
        "picture of yours and changed versions of it.",
    )
    add_model_argument(parser)
    parser.add_argument("prompt", help="the first prompt")
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="PROMPT", help="changed prompts; one column each"
    )
    parser.add_argument(
        "--num_images",
        type=int,
        metavar="N",
        help="pictures per prompt, one row for each latent (default: 4; 1 with --image)",
    )
    parser.add_argument(
        "--out", default="edit.png", metavar="FILE", help=".png, .webp or .jpg (default: edit.png)"
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="a picture that shows the first prompt: find how the model draws it (`imagen-pl project`), and "
        "draw that with the changed prompts",
    )
    add_projection_options(parser, given="with --image: ")
    add_upscaler_argument(parser)
    add_sampling_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return edit(make_parser().parse_args(words))


def edit(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range or has no effect here, or a prompt is empty.
    """
    _check_options(arguments)
    out, prompts = Path(arguments.out), [arguments.prompt, *arguments.to]
    check_picture_path(out)
    check_num_images(arguments.num_images)
    check_prompts(prompts)
    options = sampling_options(arguments)
    if arguments.image is not None:
        return _edit_picture(arguments, options, out)
    from imagen_pl.imaging.grids import labelled_grid, save_picture

    cascade = open_cascade(arguments, options)
    pairs = [(prompt, options.seed + k) for k in range(arguments.num_images) for prompt in prompts]
    pictures = list(cascade.draw(pairs))
    grid = labelled_grid(pictures, [prompt for prompt, _ in pairs], columns=len(prompts))
    drawn = {"prompt": arguments.prompt, "to": "\n".join(arguments.to), "seed": options.seed}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(grid, out, {**drawn, **cascade.about()})
    print(f"{out}: one row per latent, seeds from {options.seed}; the first column is {arguments.prompt!r}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError if an option is set that has no effect, with or without --image."""
    usual = make_parser().parse_args([arguments.model, arguments.prompt, "--to", *arguments.to])
    random, picture = ("num_images", "truncation", "guidance", "refine"), ("steps", "space", "encoder")
    unused = picture if arguments.image is None else random
    for name in unused:
        if getattr(arguments, name) != getattr(usual, name):
            goes = "goes with --image" if arguments.image is None else "does not go with --image"
            raise UserError(f"--{name} {goes}: leave it out")
    if arguments.num_images is None:
        arguments.num_images = 4 if arguments.image is None else 1


def _edit_picture(arguments: argparse.Namespace, options: SamplingOptions, out: Path) -> int:
    """A row: the picture, what the model draws in its place, and that with each changed prompt."""
    file = Path(arguments.image)
    check_projection(arguments, [file])
    cascade = open_cascade(arguments, options)
    model = cascade.model
    found = project_pictures(model, read_pictures(model, [file]), arguments.prompt, arguments)
    from imagen_pl.imaging.grids import labelled_grid, save_picture, to_pil, to_uint8
    from imagen_pl.inference.projection import drawn_with, reworded

    pictures = [*found.wanted, *found.drawn]
    for prompt in arguments.to:
        text = model.text_encoder.encode([prompt], model.device)
        styles = reworded(found.generator, found.styles, found.text, text, options.seed)
        pictures += to_pil(to_uint8(drawn_with(found.generator, styles, text, model.growth)))
    shown = [arguments.prompt, arguments.prompt, *arguments.to]
    pictures = list(cascade.enlarge(pictures, [(prompt, options.seed) for prompt in shown]))
    grid = labelled_grid(pictures, [file.name, arguments.prompt, *arguments.to], columns=len(pictures))
    out.parent.mkdir(parents=True, exist_ok=True)
    edited = {"image": file.name, "prompt": arguments.prompt, "to": "\n".join(arguments.to)}
    about = {"model": arguments.model, "steps": arguments.steps, "space": arguments.space}
    save_picture(grid, out, {**edited, **about, **cascade.enlarged(), "seed": options.seed})
    print(f"{out}: {file.name}, what the model draws ({found.psnr[0]:.1f} dB), and that with other words")
    return 0
