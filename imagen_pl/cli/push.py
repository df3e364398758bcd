"""`imagen-pl push`: upload a release, with its model card, to the Hugging Face hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_discriminator_argument, add_model_argument, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.storage.hub_upload import check_hub
from imagen_pl.storage.model_paths import model_file


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "push",
        description="Upload a model to the Hugging Face hub: half-precision weights, a card, and samples.",
        notes=(
            "The model card is generated: read it on the hub and complete it. The data's path and "
            "captions are published only if the data source declares that they may be, as that of the "
            "shipped emoji does."
        ),
    )
    add_model_argument(parser)
    parser.add_argument("hub_id", metavar="OWNER/NAME", help="the name on the hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    add_discriminator_argument(parser)
    parser.add_argument(
        "--license", default="mit", help="licence of the weights, as the hub spells it (default: mit)"
    )
    parser.add_argument(
        "--evaluation",
        nargs="+",
        metavar="FILE",
        help="evaluation.json of `imagen-pl evaluate`, one for each split, for the scores on the card",
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="PROMPT",
        help="prompts of the samples on the card, drawn with seed 0; domains of a model that translates",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PICTURE",
        help="pictures for the samples of a model that changes pictures (default: four that icons draws)",
    )
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return push(make_parser().parse_args(words))


def push(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: the name is malformed, the user is not logged in, or the hub refuses or cannot be reached.
    """
    file = model_file(arguments.model, arguments.with_discriminator)
    images = [Path(name) for name in arguments.images or ()]
    for image in images:
        if not image.is_file():
            raise UserError(f"--images {image}: there is no such file")
    check_hub(arguments.hub_id)
    from imagen_pl.inference.model_card import read_evaluation

    evaluations = [read_evaluation(Path(name)) for name in arguments.evaluation or ()]
    model = open_model(str(file), device="cpu", draws=False)
    names = model.push_to_hub(
        arguments.hub_id,
        private=arguments.private,
        licence=arguments.license,
        evaluations=evaluations,
        prompts=arguments.prompts,
        images=images,
        with_discriminator=arguments.with_discriminator,
    )
    print(f"{arguments.hub_id}: {', '.join(names)}")
    generator = model.generator
    if generator.reads_images:
        example = generator.verb_arguments
    else:
        from imagen_pl.inference.publishing import check_prompts

        example = f'"{check_prompts(model, arguments.prompts)[0]}"'
    print(f"Use it: imagen-pl {generator.verb} {arguments.hub_id} {example}")
    return 0
