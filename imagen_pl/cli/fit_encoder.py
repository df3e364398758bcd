"""`imagen-pl fit-encoder`: train an encoder that finds the styles of pictures at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.drawing import check_seed
from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_device_argument, add_model_argument, verb_parser
from imagen_pl.cli.prompt_files import read_prompts
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "fit-encoder",
        description="Train an encoder from pictures to a model's styles, on pictures that the model draws "
        "itself. `imagen-pl project --encoder FILE` then needs no search, or a short one.",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--kimg",
        type=float,
        default=16.0,
        metavar="N",
        help="thousands of pictures to train on (default: 16)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="captions to draw: a .txt, .csv or .jsonl file (default: those that the model keeps of its "
        "training set)",
    )
    parser.add_argument(
        "--out",
        default="encoder.safetensors",
        metavar="FILE",
        help="file of the encoder (default: encoder.safetensors)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the pictures (default: 0)")
    add_device_argument(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return fit_encoder(make_parser().parse_args(words))


def fit_encoder(arguments: argparse.Namespace) -> int:
    """Run the verb. Ctrl-C ends the training early and keeps what was learnt.

    Raises:
        UserError: an argument is out of range, the model keeps no captions, or its generator has no styles.
    """
    out = Path(arguments.out)
    from imagen_pl.models.style_encoder import is_encoder

    if arguments.kimg <= 0:
        raise UserError(f"--kimg {arguments.kimg:g} must be more than 0")
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must be a .safetensors file")
    if out.is_dir() or (out.is_file() and not is_encoder(out)):
        raise UserError(f"--out {out} exists and is no encoder: name another file")
    check_seed(arguments.seed)
    given = None if arguments.prompts is None else [p.text for p in read_prompts(arguments.prompts)]
    model = open_model(arguments.model, arguments.device)
    import torch

    from imagen_pl.cli.project import network
    from imagen_pl.data.progress import progress_bar
    from imagen_pl.inference.projection import projectable
    from imagen_pl.inference.style_encoder_fit import BATCH, StyleEncoderFit
    from imagen_pl.models.style_encoder import StyleEncoder, save_encoder

    generator = projectable(model.generator)
    captions = given if given is not None else _captions(model)
    torch.manual_seed(arguments.seed)
    encoder = StyleEncoder(
        model.resolution,
        len(generator.resolutions),
        generator.first_map.in_features,
        aspect_ratio=generator.aspect_ratio,
        image_channels=generator.image_channels,
    ).to(model.device)
    teacher = network("efficientnet_lite0", model.resolution)
    steps = max(1, round(1000 * arguments.kimg / BATCH))
    training = StyleEncoderFit(
        encoder, generator, model.text_encoder, captions, model.growth, teacher, steps, arguments.seed
    )
    done, parts = 0, {"style": float("nan")}
    with progress_bar("training the encoder", steps * BATCH, " pictures") as bar:
        try:
            for number in range(steps):
                parts = training.step(number)
                done = number + 1
                bar.update(BATCH)
                bar.set_postfix({name: f"{value:.3f}" for name, value in parts.items()}, refresh=False)
        except KeyboardInterrupt:
            if not done:
                raise
    out.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(encoder, out, generator)
    stopped = "" if done == steps else f" (stopped; {steps * BATCH:,} were planned)"
    print(
        f"{out}: trained on {done * BATCH:,} pictures{stopped}; 1 - cosine similarity of the styles "
        f"{parts['style']:.3f}"
    )
    print(f"Use it: imagen-pl project {arguments.model} IMAGE --prompt TEXT --encoder {out}")
    return 0


def _captions(model: TextToImage) -> list[str]:
    captions: list[str] = model.description.get("captions") or []
    if not captions:
        raise UserError("this model keeps no captions of its training set: give some with --prompts FILE")
    return captions
