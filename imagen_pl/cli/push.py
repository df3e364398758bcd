"""`imagen-pl push`: a release on the Hugging Face hub, with its card; and back from there."""

from __future__ import annotations

import argparse
import copy
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from imagen_pl.cli.options import add_model_argument, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid
from imagen_pl.inference.model_card import model_card, read_evaluation
from imagen_pl.inference.pipeline import TextToImage, load
from imagen_pl.storage.model_files import HUB_ID

# Drawn for the card with seed 0: nothing is picked.
_PROMPTS = (
    "red heart, fluent style",
    "blue square, twemoji style",
    "grinning face, noto style",
    "cat face, fluent style",
    "orange heart, noto style",
    "rose, twemoji style",
    "robot, fluent style",
    "palm tree, noto style",
)


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "push",
        description="Publish a model on the Hugging Face hub: half-precision weights, a card, and samples.",
        notes="Read the card there, and complete it: it says of the data only what the model knows of them.",
    )
    add_model_argument(parser)
    parser.add_argument("hub_id", metavar="OWNER/NAME", help="its name on the hub")
    parser.add_argument("--private", action="store_true", help="let nobody else see it, where it is new")
    parser.add_argument(
        "--license", default="mit", help="of the weights, as the hub spells it (default: mit)"
    )
    parser.add_argument(
        "--evaluation", metavar="FILE", help="evaluation.json of `imagen-pl evaluate`: scores for the card"
    )
    parser.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", help="of the card's samples, drawn with seed 0"
    )
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return push(make_parser().parse_args(words))


def push(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says.

    Raises:
        UserError: the name is none, there is nobody logged in, or the hub refuses.
    """
    if not re.fullmatch(HUB_ID, arguments.hub_id):
        raise UserError(f"{arguments.hub_id} is no name on the hub: give OWNER/NAME")
    evaluation = None if arguments.evaluation is None else read_evaluation(Path(arguments.evaluation))
    model = load(arguments.model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(
            model,
            Path(folder),
            arguments.hub_id,
            arguments.license,
            evaluation,
            arguments.prompts or list(_PROMPTS),
        )
        names = sorted(file.name for file in release.iterdir())
        _upload(release, arguments.hub_id, arguments.private)
    print(f"{arguments.hub_id}: {', '.join(names)}")
    print(f'Use it: imagen-pl sample {arguments.hub_id} "{(arguments.prompts or _PROMPTS)[0]}"')
    return 0


def write_release(
    model: TextToImage,
    folder: Path,
    name: str,
    licence: str,
    evaluation: dict[str, object] | None,
    prompts: list[str],
) -> Path:
    """Weights in half precision, description, card and samples of fixed prompts."""
    # The path of the data on this machine says nothing to others, and their captions may not be for others.
    source, model = model.description.get("data"), copy.copy(model)
    if source is None or "Emoji" not in source["class_path"]:
        model.description = {**model.description, "data": None, "captions": []}
    model.save(folder, torch.float16)
    labelled_grid(model.sample(prompts), prompts, columns=4, smallest=128).save(folder / "samples.png")
    described = {**model.description, "data": source}
    scores = [] if evaluation is None else [evaluation]
    card = model_card(name, described, licence=licence, evaluations=scores, samples="samples.png")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _upload(folder: Path, hub_id: str, private: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(hub_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message="Upload by imagen_pl")
    except LocalTokenNotFoundError:
        raise UserError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN") from None
    except Exception as error:  # the hub's own, or those of the HTTP library that it uses in this version
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the hub does not take {hub_id}: {reason}") from error
