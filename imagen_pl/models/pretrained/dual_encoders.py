"""Frozen networks that put images and captions into one space, as CLIP does.

Axes: b batch, e the space's dimensions, r s pixels.
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
from imagen_pl.models.pretrained.backbones import FrozenNetwork, normalisation_of, normalised
from imagen_pl.storage.hub import from_pretrained

_WHAT = "dual encoder"
_KEPT = 2**16  # captions whose vectors are kept: 100 MB


class DualEncoder(FrozenNetwork):
    """Images and captions to vectors whose cosine says how well they fit.

    Attributes, set by the subclass:
        name: of the network.
    """

    def images(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b e"]:
        """Vectors, float32, of images (-1 to 1) of any size; differentiable with regard to the images."""
        return self._images(self.on(images.device), images).float()

    def texts(self, captions: Sequence[str], device: torch.device) -> Float[Tensor, "b e"]:
        """Vectors, float32, of captions; each is worked out once."""
        known = self._known
        if len(known) + len(captions) > _KEPT:
            known.clear()
        for caption in dict.fromkeys(captions):
            if caption not in known:
                # One by one: its last digits must not depend on its neighbours, which a resume changes.
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    known[caption] = self._text(self.on(device), caption).float()[0].cpu()
        return torch.stack([known[caption] for caption in captions]).to(device)

    @cached_property
    def _known(self) -> dict[str, Float[Tensor, " e"]]:
        return {}

    @abstractmethod
    def _images(self, network: nn.Module, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b e"]: ...

    @abstractmethod
    def _text(self, network: nn.Module, caption: str) -> Float[Tensor, "1 e"]: ...


class TransformersDualEncoder(DualEncoder):
    """Any dual encoder that `transformers` opens: CLIP, SigLIP and their like.

    Args:
        name: a name on the Hugging Face hub, as openai/clip-vit-base-patch32, or a folder that holds a model.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _read(self) -> nn.Module:
        network: nn.Module = from_pretrained("AutoModel", self.name, what=_WHAT)
        for half in ("get_image_features", "get_text_features"):
            if not hasattr(network, half):
                raise UserError(
                    f"dual encoder {self.name}: {type(network).__name__} has no {half}: name a model of "
                    "images and text, as CLIP or SigLIP"
                )
        return network

    def _images(self, network: Any, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b e"]:
        size = network.config.vision_config.image_size
        return _vectors(network.get_image_features(normalised(images, size, self._normalisation)))

    def _text(self, network: Any, caption: str) -> Float[Tensor, "1 e"]:
        config = network.config.get_text_config()
        words = self._tokenizer(
            # Half a pair of surrogates, as JSON files may hold, is no text.
            [caption.encode(errors="replace").decode()],
            # SigLIP was trained on captions filled up to one length, and reads the filling.
            padding="max_length" if config.model_type.startswith("siglip") else False,
            truncation=True,
            max_length=config.max_position_embeddings,
            return_tensors="pt",
        ).to(next(network.parameters()).device)
        return _vectors(network.get_text_features(input_ids=words.input_ids))

    @cached_property
    def _tokenizer(self) -> Any:
        return from_pretrained("AutoTokenizer", self.name, what=_WHAT)

    @cached_property
    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return normalisation_of(self.name)


def _vectors(found: Any) -> Tensor:
    """transformers gives them bare, or among other things from 5.0 on."""
    vectors: Tensor = getattr(found, "pooler_output", found)
    return vectors
