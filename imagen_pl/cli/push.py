"""`imagen-pl push`: upload a release, with its model card, to the Hugging Face hub."""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_discriminator_argument, add_model_argument, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid
from imagen_pl.storage.hub import hub_has_address
from imagen_pl.storage.model_paths import DESCRIPTION, DISCRIMINATOR_WEIGHTS, HUB_ID, model_file

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage

# Prompts of the samples on the card. Seed 0: the samples are not selected.
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
        metavar="FILE",
        help="evaluation.json of `imagen-pl evaluate`, for the scores on the card",
    )
    parser.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", help="prompts of the samples on the card, drawn with seed 0"
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
    if not re.fullmatch(HUB_ID, arguments.hub_id):
        raise UserError(f"{arguments.hub_id} is not a name on the hub: give OWNER/NAME")
    file = model_file(arguments.model, arguments.with_discriminator)
    _check_hub(arguments.hub_id)
    from imagen_pl.inference.model_card import read_evaluation

    evaluation = None if arguments.evaluation is None else read_evaluation(Path(arguments.evaluation))
    model = open_model(str(file), device="cpu")
    prompts = arguments.prompts or list(model.text_encoder.classes or _PROMPTS)[:16]
    model.text_encoder.check(prompts)
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(
            model,
            Path(folder),
            arguments.hub_id,
            arguments.license,
            evaluation,
            prompts,
            arguments.with_discriminator,
        )
        names = sorted(file.name for file in release.iterdir())
        _upload(release, arguments.hub_id, arguments.private)
    print(f"{arguments.hub_id}: {', '.join(names)}")
    print(f'Use it: imagen-pl sample {arguments.hub_id} "{prompts[0]}"')
    return 0


def write_release(
    model: TextToImage,
    folder: Path,
    name: str,
    licence: str,
    evaluation: dict[str, object] | None,
    prompts: list[str],
    with_discriminator: bool = False,
) -> Path:
    """Write weights in half precision, config.json, the model card and samples of fixed prompts.

    Raises:
        UserError: the discriminator is requested, but the model's file has none.
    """
    import torch

    from imagen_pl.data.sources.declaration import declaration_of
    from imagen_pl.inference.model_card import model_card

    # Unless the source declares that they may be published, its settings (which hold a path) and example
    # captions are left out.
    source, model = model.description.get("data"), copy.copy(model)
    if not declaration_of(source).captions_may_be_published:
        model.description = {**model.description, "data": None, "captions": []}
    model.save(folder, torch.float16, with_discriminator)
    labelled_grid(model.sample(prompts), prompts, columns=4, min_width=128).save(folder / "samples.png")
    described = {**json.loads((folder / DESCRIPTION).read_text()), "data": source}
    scores = [] if evaluation is None else [evaluation]
    card = model_card(
        name,
        described,
        licence=licence,
        evaluations=scores,
        samples="samples.png",
        discriminator_mb=(folder / DISCRIMINATOR_WEIGHTS).stat().st_size / 1e6
        if with_discriminator
        else None,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _check_hub(hub_id: str) -> None:
    """Ask the hub who is logged in, before the model is opened and drawn from."""
    from huggingface_hub import HfApi

    if not hub_has_address():
        raise _unreachable(hub_id, "its address is not found")
    with _hub_errors(hub_id):
        HfApi().whoami()


def _upload(folder: Path, hub_id: str, private: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(hub_id):
        api.create_repo(hub_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message="Upload by imagen_pl")


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Errors of huggingface_hub as one line for the user."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"the hub refuses {hub_id}: {_one_line(error)}") from error
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        raise _unreachable(hub_id, _one_line(error) or type(error).__name__) from error


def _unreachable(hub_id: str, why: str) -> UserError:
    return UserError(
        f"the Hugging Face hub cannot be reached ({why}): check the network and HF_HUB_OFFLINE, then push "
        f"again. The name {hub_id} was not checked"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
