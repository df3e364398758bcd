"""Opens the model that the command line names; a wrong name is reported before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imagen_pl.storage.model_paths import captioner_file, model_file

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage
    from imagen_pl.inference.retrieval_captioning import AnyCaptioner


def open_model(name: str, device: str | None = None, resolution: int | None = None) -> TextToImage:
    """The result of `imagen_pl.load`. A wrong name raises UserError in a fraction of a second."""
    file = model_file(name)
    from imagen_pl.inference.pipeline import load

    return load(file, device, resolution)


def open_captioner(name: str, device: str | None = None) -> AnyCaptioner:
    """The result of `load_any_captioner`. A wrong name raises UserError in a fraction of a second."""
    captioner_file(name)
    from imagen_pl.inference.retrieval_captioning import load_any_captioner

    return load_any_captioner(name, device)
