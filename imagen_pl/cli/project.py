"""`imagen-pl project`: find the styles with which a model draws given pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.drawing import check_picture_path, check_prompts, check_seed
from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_device_argument, add_model_argument, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.inference.sampling_options import PROJECTION_STEPS

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    from imagen_pl.inference.pipeline import TextToImage
    from imagen_pl.models.generators.style import StyleGenerator
    from imagen_pl.models.pretrained.backbones import Backbone
    from imagen_pl.types import TextFeatures

MOST_STEPS = 5000
_FILM_FRAMES, _FILM_FPS = 60, 12.0


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "project",
        description="Find the styles with which a model draws given pictures, and show both side by side.",
        notes="`imagen-pl edit MODEL PROMPT --to PROMPT --image FILE` projects a picture in the same way and "
        "then draws it with other words.",
    )
    add_model_argument(parser)
    parser.add_argument("image", nargs="+", help="picture files, cut like the training images")
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help='what the pictures show, for example "bell, outline"'
    )
    add_projection_options(parser)
    parser.add_argument(
        "--film", metavar="FILE", help="also write an animation of the search: .gif, .webp or .mp4"
    )
    parser.add_argument(
        "--out", default="projected.png", metavar="FILE", help=".png, .webp or .jpg (default: projected.png)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")
    add_device_argument(parser)
    return parser


def add_projection_options(parser: argparse.ArgumentParser, given: str = "") -> None:
    """Add the options of the verbs that project pictures; `given` begins their help."""
    parser.add_argument(
        "--steps",
        type=int,
        default=PROJECTION_STEPS,
        metavar="N",
        help=f"{given}steps of the search for a picture's style, 1 to {MOST_STEPS:,}, or 0 with --encoder "
        f"(default: {PROJECTION_STEPS})",
    )
    parser.add_argument(
        "--encoder",
        metavar="FILE",
        help=f"{given}start from the styles that an encoder finds at once (`imagen-pl fit-encoder`): a "
        "shorter search is then enough",
    )
    parser.add_argument(
        "--space",
        choices=("w", "w+"),
        default="w+",
        help=f"{given}search one style for all resolutions (w), or one for each (w+), which comes nearer "
        "to the picture (default: w+)",
    )


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return project(make_parser().parse_args(words))


def project(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, a picture cannot be read, or the generator has no styles.
    """
    out, files = Path(arguments.out), [Path(name) for name in arguments.image]
    check_picture_path(out)
    check_prompts([arguments.prompt])
    check_seed(arguments.seed)
    check_projection(arguments, files)
    if arguments.film:
        if not arguments.steps:
            raise UserError("--film shows the search: leave it out with --steps 0")
        from imagen_pl.imaging.animation import check_animation

        check_animation(Path(arguments.film), _FILM_FPS)
    model = open_model(arguments.model, arguments.device)
    pictures = read_pictures(model, files)
    found = project_pictures(model, pictures, arguments.prompt, arguments, filmed=bool(arguments.film))
    from imagen_pl.imaging.grids import labelled_grid, save_picture

    both = [each for pair in zip(found.wanted, found.drawn, strict=True) for each in pair]
    labels = [label for file in files for label in (file.name, arguments.prompt)]
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": arguments.model, "prompt": arguments.prompt, "steps": arguments.steps}
    grid = labelled_grid(both, labels, columns=2 if len(files) < 4 else 8)
    save_picture(grid, out, {**about, "space": arguments.space, "seed": arguments.seed})
    for file, psnr, distance in zip(files, found.psnr, found.distance, strict=True):
        print(f"{file}: {psnr:.1f} dB, perceptual distance {distance:.3f}")
    if arguments.film:
        from imagen_pl.imaging.animation import write_animation

        write_animation(found.frames, Path(arguments.film), _FILM_FPS, loop=False)
        print(f"{arguments.film}: {len(found.frames)} frames of the search")
    print(f"{out}: each picture, then what the model draws")
    return 0


def check_projection(arguments: argparse.Namespace, files: Sequence[Path]) -> None:
    """Raise UserError if --steps is out of range, a file is missing, or --out would replace one."""
    least = 1 if arguments.encoder is None else 0
    if not least <= arguments.steps <= MOST_STEPS:
        raise UserError(f"--steps {arguments.steps} must be {least} to {MOST_STEPS}")
    if arguments.encoder is not None and arguments.space == "w":
        raise UserError("--encoder finds a style for each resolution: leave out --space w")
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
        for option in ("out", "film"):
            written = getattr(arguments, option, None)
            if written and Path(written).resolve() == file.resolve():
                raise UserError(f"--{option} {written} is a picture to project: name another file")


def read_pictures(model: TextToImage, files: Sequence[Path]) -> Float[Tensor, "b _c h w"]:
    """Pictures at the model's size, -1 to 1, decoded like its training images."""
    import torch

    from imagen_pl.data.transforms import UNREADABLE

    read = []
    for file in files:
        try:
            read.append(model.processing.decode(file, model.resolution))
        except UNREADABLE as error:
            raise UserError(f"{file} cannot be read as a picture ({type(error).__name__})") from error
    return torch.stack(read).to(model.device).float() / 127.5 - 1


@dataclass
class Projected:
    """The projection of pictures with one prompt.

    generator: the model's generator.
    text: the prompt's features, a row a picture.
    styles: the styles found.
    wanted, drawn: the pictures, and what the model draws.
    psnr: peak signal-to-noise ratio of each, dB.
    distance: perceptual distance of each, by EfficientNet-Lite1, which took no part in the search.
    frames: of the search, if they are kept: pictures and what was drawn, in a row.
    """

    generator: StyleGenerator
    text: TextFeatures
    styles: Float[Tensor, "b n style"]
    wanted: list[Image.Image]
    drawn: list[Image.Image]
    psnr: list[float]
    distance: list[float]
    frames: list[Image.Image]


def project_pictures(
    model: TextToImage,
    pictures: Float[Tensor, "b _c h w"],
    prompt: str,
    arguments: argparse.Namespace,
    filmed: bool = False,
) -> Projected:
    """Project pictures, with a progress bar.

    Args:
        model: the model.
        pictures: the pictures, -1 to 1.
        prompt: what they show.
        arguments: `steps`, `space`, `encoder` and `seed`.
        filmed: keep frames of the search.

    Raises:
        UserError: the generator has no styles, the encoder is not of this model, or there are too many
            pictures for a film.
    """
    from imagen_pl.imaging.grids import strip, to_pil, to_uint8
    from imagen_pl.inference.projection import drawn_with, perceptual_distance, projectable, psnr

    if filmed and len(pictures) > model.at_once:
        raise UserError(f"--film shows {model.at_once} pictures at most: give fewer, or leave it out")
    generator = projectable(model.generator)
    text = model.text_encoder.encode([prompt] * len(pictures), model.device)
    wanted, frames = to_pil(to_uint8(pictures)), []
    every = max(1, arguments.steps // _FILM_FRAMES)

    def on_step(step: int, drawn: Tensor) -> None:
        if filmed and (step % every == 0 or step == 1):
            shown = zip(wanted, to_pil(to_uint8(drawn)), strict=True)
            frames.append(strip([each for pair in shown for each in pair], min_width=128))

    styles = _search(model, generator, pictures, text, arguments, on_step)
    images = drawn_with(generator, styles, text, model.growth)
    distance = perceptual_distance(network("efficientnet_lite1", model.resolution), images, pictures)
    return Projected(
        generator,
        text,
        styles,
        wanted,
        to_pil(to_uint8(images)),
        psnr(images, pictures).tolist(),
        distance.tolist(),
        frames,
    )


def _search(
    model: TextToImage,
    generator: StyleGenerator,
    pictures: Float[Tensor, "b _c h w"],
    text: TextFeatures,
    arguments: argparse.Namespace,
    on_step: Callable[[int, Tensor], object],
) -> Float[Tensor, "b n style"]:
    """The styles of pictures, as many at once as the model draws at once."""
    import torch

    from imagen_pl.data.progress import progress_bar
    from imagen_pl.inference.projection import encode_styles, project
    from imagen_pl.models.style_encoder import load_encoder

    encoder = None
    if arguments.encoder is not None:
        encoder = load_encoder(Path(arguments.encoder), generator, model.resolution).to(model.device)
    teacher, size = network("efficientnet_lite0", model.resolution), model.at_once
    parts = [slice(begin, begin + size) for begin in range(0, len(pictures), size)]
    found = []
    with progress_bar("projecting", len(parts) * arguments.steps, " steps") as bar:

        def counted(step: int, drawn: Tensor) -> None:
            bar.update(1)
            on_step(step, drawn)

        for part in parts:
            start = None if encoder is None else encode_styles(encoder, generator, pictures[part], text[part])
            found.append(
                project(
                    generator,
                    pictures[part],
                    text[part],
                    model.growth,
                    teacher,
                    arguments.steps,
                    arguments.space == "w+",
                    arguments.seed,
                    counted,
                    start,
                )
            )
    return torch.cat(found)


def network(name: str, resolution: int) -> Backbone:
    """A network that is installed with this package, as projection compares pictures with it."""
    from imagen_pl.models.pretrained.backbones import TimmBackbone

    return TimmBackbone(name=name, size=max(64, resolution), maps=[0, 1, 2, 3, 4])
