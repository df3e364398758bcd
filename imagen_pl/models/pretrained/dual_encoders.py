"""Frozen networks that embed images and captions in one space, as CLIP does.

Axes: b batch, e embedding, r pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.imaging.transparency import on_white
from imagen_pl.models.pretrained.backbones import FrozenNetwork, normalisation_of, normalised
from imagen_pl.storage.hub import from_pretrained

_WHAT = "dual encoder"
_MAX_CACHED = 2**16  # cached captions: 100 MB


class DualEncoder(FrozenNetwork):
    """Embeds images and captions as vectors whose cosine similarity measures how well they match.

    Attributes, set by the subclass:
        name: name of the network.
    """

    def images(self, images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b e"]:
        """Vectors, float32, of images (-1 to 1) of any size; differentiable in the images."""
        return self._images(self.on(images.device), on_white(images)).float()

    def texts(self, captions: Sequence[str], device: torch.device) -> Float[Tensor, "b e"]:
        """Vectors, float32, of captions; each is computed once and cached."""
        cache = self._cache
        if len(cache) + len(captions) > _MAX_CACHED:
            cache.clear()
        for caption in dict.fromkeys(captions):
            if caption not in cache:
                # One at a time: rounding depends on the rest of a batch, and a resumed run has other batches.
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    cache[caption] = self._text(self.on(device), caption).float()[0].cpu()
        return torch.stack([cache[caption] for caption in captions]).to(device)

    @cached_property
    def _cache(self) -> dict[str, Float[Tensor, " e"]]:
        return {}

    @abstractmethod
    def _images(self, network: nn.Module, images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b e"]: ...

    @abstractmethod
    def _text(self, network: nn.Module, caption: str) -> Float[Tensor, "1 e"]: ...


class TransformersDualEncoder(DualEncoder):
    """Any dual encoder that `transformers` opens: CLIP, SigLIP and similar networks.

    Args:
        name: name on the Hugging Face hub, for example openai/clip-vit-base-patch32, or a folder with one.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _read(self) -> nn.Module:
        network: nn.Module = from_pretrained("AutoModel", self.name, what=_WHAT)
        for half in ("get_image_features", "get_text_features"):
            if not hasattr(network, half):
                raise UserError(
                    f"dual encoder {self.name}: {type(network).__name__} has no {half}: name a model of "
                    "images and text, for example CLIP or SigLIP"
                )
        return network

    def _images(self, network: Any, images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b e"]:
        size = network.config.vision_config.image_size
        return _vectors(network.get_image_features(normalised(images, size, self._normalisation)))

    def _text(self, network: Any, caption: str) -> Float[Tensor, "1 e"]:
        config = network.config.get_text_config()
        tokens = self._tokenizer(
            # A lone surrogate, which JSON files may contain, is not valid text.
            [caption.encode(errors="replace").decode()],
            # SigLIP was trained on captions padded to one length, and attends to the padding.
            padding="max_length" if config.model_type.startswith("siglip") else False,
            truncation=True,
            max_length=config.max_position_embeddings,
            return_tensors="pt",
        ).to(next(network.parameters()).device)
        return _vectors(network.get_text_features(input_ids=tokens.input_ids))

    @cached_property
    def _tokenizer(self) -> Any:
        return from_pretrained("AutoTokenizer", self.name, what=_WHAT)

    @cached_property
    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return normalisation_of(self.name)


def _vectors(found: Any) -> Tensor:
    """The vectors in the output of transformers: the output itself, or its pooler_output from 5.0 on."""
    vectors: Tensor = getattr(found, "pooler_output", found)
    return vectors
