"""Opens the model that the command line names; a wrong name is reported before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import DESCRIPTION, RELEASED, captioner_file, model_file

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage
    from imagen_pl.inference.retrieval_captioning import AnyCaptioner
    from imagen_pl.inference.upscaling import Upscaler

UPSAMPLER = "upsampler"  # the one that ships
UPSCALED_FROM = 64  # px, the size of the small pictures that it was trained for


def open_model(
    name: str, device: str | None = None, resolution: int | None = None, draws: bool = True
) -> TextToImage:
    """The result of `imagen_pl.load`. A wrong name raises UserError in a fraction of a second.

    Args:
        name: what the user gave.
        device: as of `load`.
        resolution: as of `load`.
        draws: the verb needs a model that draws from captions alone; another raises UserError.
    """
    file = model_file(name)
    from imagen_pl.inference.pipeline import load

    model = load(file, device, resolution)
    if draws:
        check_draws(model, name)
    return model


def check_draws(model: TextToImage, name: str) -> None:
    """Raise UserError, naming the right verb, if a model changes pictures instead of drawing captions."""
    generator = model.generator
    if generator.reads_images:
        raise UserError(
            f"{name} is a {type(generator).__name__}, which changes given pictures: use "
            f"`imagen-pl {generator.verb} {name} {generator.verb_arguments}`"
        )


def open_upscaler(name: str | None, model: TextToImage, device: str | None = None) -> Upscaler | None:
    """What enlarges the pictures of a model.

    Args:
        name: of the upsampler; "none" does not enlarge. None takes the one that ships with this package for
            models of 64 px of icons or emoji, which it was trained on, and nothing for others.
        model: the model that draws.
        device: as of `load`.

    Raises:
        UserError: there is no such model, or it does not enlarge pictures.
    """
    if name is None:
        source = str((model.description.get("data") or {}).get("class_path", ""))
        ours = model.resolution == UPSCALED_FROM and source.rpartition(".")[2] in (
            "IconSource",
            "EmojiSource",
        )
        if not ours or not (RELEASED / UPSAMPLER / DESCRIPTION).is_file():
            return None
        name = str(RELEASED / UPSAMPLER)
    if name == "none":
        return None
    from imagen_pl.inference.upscaling import load_upscaler

    return load_upscaler(model_file(name), device)


def check_upscaler(name: str | None) -> None:
    """Raise UserError for a wrong name in a fraction of a second, before a model is opened."""
    if name not in (None, "none"):
        model_file(str(name))


def open_captioner(name: str, device: str | None = None) -> AnyCaptioner:
    """The result of `load_any_captioner`. A wrong name raises UserError in a fraction of a second."""
    captioner_file(name)
    from imagen_pl.inference.retrieval_captioning import load_any_captioner

    return load_any_captioner(name, device)
