"""`imagen-pl project`: find the styles with which a model draws given pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.drawing import check_picture_path, check_prompts, check_seed
from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_device_argument, add_model_argument, verb_parser
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    from imagen_pl.inference.pipeline import TextToImage
    from imagen_pl.models.pretrained.backbones import Backbone

USUAL_STEPS = 300
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
    parser.add_argument("image", nargs="+", help="picture files; the centre square is used")
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
        default=USUAL_STEPS,
        metavar="N",
        help=f"{given}steps of the search for a picture's style, 1 to {MOST_STEPS:,}, or 0 with --encoder "
        f"(default: {USUAL_STEPS})",
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
    found = Projected(model, pictures, arguments.prompt, arguments, filmed=bool(arguments.film))
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


def read_pictures(model: TextToImage, files: Sequence[Path]) -> Float[Tensor, "b 3 r r"]:
    """Pictures at the model's resolution, -1 to 1, cut to squares like its training images."""
    import torch

    from imagen_pl.data.transforms import UNREADABLE, Fit, decode, parse_background

    fit: Fit = model.description.get("fit") or "crop"
    background = parse_background(model.description.get("background") or "white")
    read = []
    for file in files:
        try:
            read.append(decode(file, model.resolution, fit, background))
        except UNREADABLE as error:
            raise UserError(f"{file} cannot be read as a picture ({type(error).__name__})") from error
    return torch.stack(read).to(model.device).float() / 127.5 - 1


class Projected:
    """The projection of pictures with one prompt, found with a progress bar.

    Args:
        model: the model.
        pictures: the pictures, -1 to 1.
        prompt: what they show.
        arguments: `steps`, `space`, `encoder` and `seed`.
        filmed: keep frames of the search.

    Attributes:
        styles: the styles found.
        wanted, drawn: the pictures, and what the model draws.
        psnr: peak signal-to-noise ratio of each, dB.
        distance: perceptual distance of each, by EfficientNet-Lite1, which took no part in the search.
        frames: of the search: pictures and what was drawn, in a row.
    """

    def __init__(
        self,
        model: TextToImage,
        pictures: Float[Tensor, "b 3 r r"],
        prompt: str,
        arguments: argparse.Namespace,
        filmed: bool = False,
    ) -> None:
        from imagen_pl.data.progress import progress_bar
        from imagen_pl.imaging.grids import strip, to_pil, to_uint8
        from imagen_pl.inference.projection import (
            drawn_with,
            encode_styles,
            perceptual_distance,
            project,
            projectable,
            psnr,
        )

        self.generator = projectable(model.generator)
        self.text = model.text_encoder.encode([prompt] * len(pictures), model.device)
        self.wanted = to_pil(to_uint8(pictures))
        self.frames: list[Image.Image] = []
        every = max(1, arguments.steps // _FILM_FRAMES)
        start = None
        if arguments.encoder is not None:
            from imagen_pl.models.style_encoder import load_encoder

            encoder = load_encoder(Path(arguments.encoder), self.generator, model.resolution)
            encoder.to(model.device)
            start = encode_styles(encoder, self.generator, pictures, self.text)
        with progress_bar("projecting", arguments.steps, " steps") as bar:

            def on_step(step: int, drawn: Tensor) -> None:
                bar.update(1)
                if filmed and (step % every == 0 or step == 1):
                    shown = zip(self.wanted, to_pil(to_uint8(drawn)), strict=True)
                    self.frames.append(strip([each for pair in shown for each in pair], min_width=128))

            self.styles = project(
                self.generator,
                pictures,
                self.text,
                model.growth,
                network("efficientnet_lite0", model.resolution),
                arguments.steps,
                arguments.space == "w+",
                arguments.seed,
                on_step,
                start,
            )
        images = drawn_with(self.generator, self.styles, self.text, model.growth)
        self.drawn = to_pil(to_uint8(images))
        self.psnr = psnr(images, pictures).tolist()
        judge = network("efficientnet_lite1", model.resolution)
        self.distance = perceptual_distance(judge, images, pictures).tolist()


def network(name: str, resolution: int) -> Backbone:
    """A network that is installed with this package, as projection compares pictures with it."""
    from imagen_pl.models.pretrained.backbones import TimmBackbone

    return TimmBackbone(name=name, size=max(64, resolution), maps=[0, 1, 2, 3, 4])
