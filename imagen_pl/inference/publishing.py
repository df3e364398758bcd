"""What is published with a model: its card, and samples of fixed prompts or of given pictures."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from imagen_pl.data.sources.declaration import declaration_of
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil, to_uint8
from imagen_pl.inference.model_card import model_card
from imagen_pl.models.generators.translator import Translator
from imagen_pl.models.generators.upsampler import Upsampler
from imagen_pl.storage.model_paths import DESCRIPTION, DISCRIMINATOR_WEIGHTS, RELEASED

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage

SAMPLES = "samples.png"
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
# Pictures that a model which changes pictures gets, drawn by the model `icons`.
_DRAWN = ("bell, outline", "camera, filled", "shopping cart, outline", "star, filled")
_DOMAINS = 4  # that a translator shows


def check_prompts(model: TextToImage, prompts: Sequence[str] | None) -> list[str]:
    """The prompts of the samples: as given, or the usual ones of the model.

    For a Translator they are domains. An Upsampler needs none.

    Raises:
        UserError: the text encoder refuses one of them, or the domains are not known.
    """
    chosen = list(prompts or [])
    if not chosen and model.text_encoder.classes is not None:
        chosen = list(model.text_encoder.classes)
    if not chosen and isinstance(model.generator, Translator):
        if declaration_of(model.description.get("data")).captions_may_be_published:
            chosen = list(dict.fromkeys(model.description.get("captions") or []))[:_DOMAINS]
        if not chosen:
            raise UserError("the samples on the card need domains to translate to: give them as prompts")
    if not chosen and not model.generator.reads_images:
        chosen = list(_PROMPTS)
    model.text_encoder.check(chosen)
    return chosen[:16]


@dataclass(frozen=True)
class ReleaseSettings:
    """What a release contains besides the generator's weights.

    licence: licence of the weights, as the hub spells it.
    evaluations: contents of evaluation.json files, for the scores on the card.
    prompts: of the samples on the card, drawn with seed 0; None takes the usual ones of the model. A
        Translator takes domains.
    images: pictures for the samples of an image-to-image model; without any, `icons` draws them.
    with_discriminator: write discriminator.safetensors too, for fine-tuning by `init_from`.
    dtype: of the weights.
    """

    licence: str = "mit"
    evaluations: Sequence[Mapping[str, Any]] = ()
    prompts: Sequence[str] | None = None
    images: Sequence[Path] = ()
    with_discriminator: bool = False
    dtype: torch.dtype = torch.float16


def write_release(model: TextToImage, folder: Path, name: str, settings: ReleaseSettings) -> Path:
    """Write weights, config.json, the model card and samples of fixed prompts.

    Args:
        model: the model.
        folder: the folder; it is created.
        name: the model's name on the card.
        settings: what else the release contains.

    Raises:
        UserError: the discriminator is requested, but the model's file has none; a prompt or a picture cannot
            be used; or the disk is full.
    """
    chosen = check_prompts(model, settings.prompts)
    write_weights(model, folder, settings.with_discriminator, settings.dtype)
    sheet = samples(model, chosen, settings.images)
    if sheet is not None:
        sheet.save(folder / SAMPLES)
    generator = model.generator
    card = model_card(
        name,
        {**json.loads((folder / DESCRIPTION).read_text()), "data": model.description.get("data")},
        licence=settings.licence,
        evaluations=settings.evaluations,
        samples=None if sheet is None else SAMPLES,
        discriminator_mb=(folder / DISCRIMINATOR_WEIGHTS).stat().st_size / 1e6
        if settings.with_discriminator
        else None,
        prompt=chosen[0] if chosen else "",
        command=f"imagen-pl {generator.verb} {name} {generator.verb_arguments}"
        if generator.reads_images
        else None,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def write_weights(
    model: TextToImage, folder: Path, with_discriminator: bool = False, dtype: torch.dtype = torch.float16
) -> None:
    """Write weights and config.json without what may not be published.

    Unless the source declares that they may be published, its settings (which hold a path) and example
    captions are left out. Arguments and errors are those of `write_release`.
    """
    own = copy.copy(model)
    if not declaration_of(model.description.get("data")).captions_may_be_published:
        own.description = {**own.description, "data": None, "captions": []}
    own.save(folder, dtype, with_discriminator)


def samples(model: TextToImage, prompts: Sequence[str], images: Sequence[Path] = ()) -> Image.Image | None:
    """The samples on the card, of seed 0; None for a model that changes pictures in a way of its own.

    Args:
        model: the model.
        prompts: what it draws; domains of a Translator; for an Upsampler what the pictures show, or none.
        images: pictures for a model that changes pictures; without any, `icons` draws them.

    Raises:
        UserError: a picture cannot be read.
    """
    if not model.generator.reads_images:
        return labelled_grid(model.sample(prompts), prompts, columns=4, min_width=128)
    shown = isinstance(model.generator, (Upsampler, Translator))
    given, about = _given(images) if shown else ([], [])
    if isinstance(model.generator, Upsampler):
        return _enlarged(model, given, prompts if len(prompts) == len(given) else about)
    return _translated(model, given, about, prompts) if shown else None


def _given(images: Sequence[Path]) -> tuple[list[Image.Image], list[str]]:
    """Pictures, and what they show where that is known."""
    if not images:
        from imagen_pl.inference.pipeline import load

        return load(RELEASED / "icons", "cpu").sample(_DRAWN, refine=0), list(_DRAWN)
    pictures = []
    for file in images:
        try:
            with Image.open(file) as opened:
                pictures.append(opened.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{file} cannot be read as a picture") from error
    return pictures, [""] * len(pictures)


def _enlarged(model: TextToImage, given: Sequence[Image.Image], about: Sequence[str]) -> Image.Image:
    """A row of the pictures, and below each what the model makes of it."""
    from imagen_pl.inference.upscaling import Upscaler

    upscaler = Upscaler(model)
    large = [upscaler.upscale(picture, text) for picture, text in zip(given, about, strict=True)]
    side = max(max(picture.size) for picture in large)
    small = [p.resize(result.size, Image.Resampling.NEAREST) for p, result in zip(given, large, strict=True)]
    framed = [_framed(picture, side) for picture in (*small, *large)]
    labels = [f"given, {p.width} x {p.height} px" for p in given] + list(about)
    return labelled_grid(framed, labels, columns=len(given), min_width=128)


def _framed(picture: Image.Image, side: int) -> Image.Image:
    """The picture in the middle of a white square."""
    frame = Image.new("RGB", (side, side), "white")
    frame.paste(picture.convert("RGB"), ((side - picture.width) // 2, (side - picture.height) // 2))
    return frame


def _translated(
    model: TextToImage, given: Sequence[Image.Image], about: Sequence[str], domains: Sequence[str]
) -> Image.Image:
    """A row for each picture: the picture, and its translation to each domain."""
    from imagen_pl.inference.translation import translated

    read = [model.processing.decode(_png(picture), model.resolution) for picture in given]
    images = torch.stack(read).to(model.device).float() / 127.5 - 1
    columns = [to_pil(to_uint8(images))]
    columns += [to_pil(to_uint8(translated(model, images, domain))) for domain in domains[:_DOMAINS]]
    labels = [[text or "given", *domains[:_DOMAINS]] for text in about]
    return labelled_grid(
        [column[row] for row in range(len(given)) for column in columns],
        [label for row in labels for label in row],
        columns=len(columns),
        min_width=128,
    )


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
