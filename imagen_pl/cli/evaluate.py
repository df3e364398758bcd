"""`imagen-pl evaluate`: all scores of a trained model on a split, as JSON, Markdown and a sheet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.options import add_model_argument, add_sampling_options, sampling_options, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import model_file


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "evaluate",
        description="Score a model's pictures against real images, and write JSON, Markdown and a sheet.",
        notes=(
            "Of each group of near-duplicate images (data.balance_groups) one is used. Features of real "
            "images are cached, so the first evaluation of a data set is slowest. Networks that the model "
            "was trained with are refused."
        ),
    )
    add_model_argument(parser)
    parser.add_argument(
        "--data",
        help="data set to compare with, as for `imagen-pl data inspect` (default: the data that the model "
        "was trained on)",
    )
    parser.add_argument(
        "--split", help="split to compare with (default: test where there is one, else validation)"
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        metavar="F",
        help="share of the images to hold out if the data has no split for it (default: as in training)",
    )
    parser.add_argument(
        "--num_images",
        type=int,
        default=1000,
        metavar="N",
        help="captions to draw a picture for (default: 1000)",
    )
    parser.add_argument(
        "--train_images",
        type=int,
        metavar="N",
        help="training images to search for copies, 0 for none; their features take most of the time, once, "
        "and are cached (default: 5 per picture, at least 1000)",
    )
    parser.add_argument(
        "--extractors",
        nargs="+",
        metavar="NAME",
        help="efficientnet_lite0, efficientnet_lite1, inception_v3 (FID), or a network of transformers by "
        "its hub name or folder, such as facebook/dinov2-small (default: an included one that the model was "
        "not trained with)",
    )
    parser.add_argument(
        "--clip", metavar="NAME", help="add the CLIP score of this CLIP or SigLIP (hub name or folder)"
    )
    parser.add_argument(
        "--fid_weights", metavar="FILE", help="file of Inception's weights, for machines without internet"
    )
    parser.add_argument(
        "--distractors",
        type=int,
        default=99,
        metavar="N",
        help="wrong subjects beside the right one, in retrieval (default: 99)",
    )
    parser.add_argument(
        "--style_after",
        default=", ",
        metavar="TEXT",
        help='separates subject and style in captions: "red heart, noto style" (default: ", ")',
    )
    parser.add_argument(
        "--out", default="evaluation", metavar="DIR", help="folder for the results (default: evaluation)"
    )
    add_sampling_options(parser, refine=0)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return evaluate(make_parser().parse_args(words))


def evaluate(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, or the data or a network is not available.
    """
    _check(arguments)
    options = sampling_options(arguments)
    model_file(arguments.model)  # a wrong name is reported before torch is imported
    from imagen_pl.cli.evaluation import write_evaluation

    write_evaluation(arguments, options)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.num_images < 2:
        raise UserError(f"--num_images {arguments.num_images} must be 2 or more, better 1,000")
    if arguments.train_images is not None and arguments.train_images < 0:
        raise UserError(f"--train_images {arguments.train_images} must be 0 or more")
    if arguments.val_fraction is not None and not 0 < arguments.val_fraction <= 0.5:
        raise UserError(f"--val_fraction {arguments.val_fraction} is not above 0 and at most 0.5")
    if Path(arguments.out).is_file():
        raise UserError(f"--out {arguments.out} is a file: name a folder")
