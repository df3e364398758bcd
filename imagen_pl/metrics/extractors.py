"""Networks that compute the features by which images are compared.

Axes: b batch, h w pixels, f features.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.backbones import normalisation_of, normalised, resized
from imagen_pl.models.pretrained.dual_encoders import DualEncoder
from imagen_pl.models.pretrained.efficientnet_lite import load_efficientnet_lite
from imagen_pl.storage.hub import from_pretrained

# Images a forward pass. Feature maps are large: those of 32 images take 150 MB in EfficientNet-Lite0.
_BATCH_SIZE = 32


class Extractor(ABC):
    """A frozen network that turns images into vectors.

    Attributes, set by the subclass:
        name: name of the network in the names of scores, for example val/fd_NAME.
        dim: f, the size of the vectors; some extractors know it only after loading.
        defines_cmmd: whether CMMD is defined by this network.
    """

    name: str
    dim: int
    defines_cmmd: bool = False

    @property
    def fingerprint(self) -> str:
        """Key of cached statistics: it changes with everything that changes the features."""
        return self.name

    @property
    def frechet_name(self) -> str:
        """Name of the Fréchet distance in these features; only Inception's is called FID."""
        return f"fd_{self.name}"

    @property
    def kernel_name(self) -> str:
        """Name of the kernel distance in these features; only Inception's is called KID."""
        return f"kd_{self.name}"

    def prepare(self, fid_weights: str | None = None) -> str | None:
        """Load the network, before training.

        Args:
            fid_weights: file with Inception's weights, as set by the user; a bad file is an error.

        Returns:
            None, or one line that says why the network is not available.
        """
        try:
            self.load()
        except UserError as error:
            return str(error)
        return None

    @abstractmethod
    def load(self) -> None:
        """Load the weights, once. Raises UserError if they are not available."""

    @abstractmethod
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Features, float32, on the images' device."""


class _Network(Extractor):
    """An extractor with one `nn.Module`."""

    _network: nn.Module | None = None

    def load(self) -> None:
        if self._network is None:
            self._network = self._make().eval().requires_grad_(False)

    @abstractmethod
    def _make(self) -> nn.Module:
        """The network with its weights."""

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        self.load()
        assert self._network is not None
        with torch.autocast(images.device.type, enabled=False):
            network = self._network.to(images.device)
            return torch.cat([self._features(network, part) for part in images.split(_BATCH_SIZE)])

    @abstractmethod
    def _features(self, network: nn.Module, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]: ...


class _EfficientNetLite(_Network):
    """ImageNet features of an EfficientNet-Lite (arXiv:1905.11946), after its global average pooling.

    Its weights (Apache-2.0) are installed with this package, so it works offline. Do not use it to score a
    model that was trained with the same features.

    Attributes, set by the subclass:
        side: the network's input resolution, px.
    """

    dim = 1280
    side: int

    def _make(self) -> nn.Module:
        return load_efficientnet_lite(self.name).to(memory_format=torch.channels_last)

    def _features(self, network: nn.Module, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        x = images.float().contiguous(memory_format=torch.channels_last)
        features: Tensor = network((resized(x, self.side) - 127.0) / 128.0)
        return features.float()


class EfficientNetLite0(_EfficientNetLite):
    """ImageNet features of EfficientNet-Lite0 at 224 px (arXiv:1905.11946), after its global average pooling.

    Its weights (Apache-2.0) are installed with this package, so it works offline. Do not use it to score a
    model whose discriminator was trained with the same features.
    """

    name = "efficientnet_lite0"
    side = 224


class EfficientNetLite1(_EfficientNetLite):
    """ImageNet features of EfficientNet-Lite1 at 240 px, for models trained with Lite0's features."""

    name = "efficientnet_lite1"
    side = 240


class InceptionV3(_Network):
    """The Inception that defines FID (arXiv:1706.08500), in torch-fidelity's port: 2,048 features.

    Args:
        weights: file with its weights: torch-fidelity's weights-inception-2015-12-05-6726825d.pth, or
            pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which is the same; None downloads it.
    """

    name = "inception_v3"
    dim = 2048

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    @property
    def fingerprint(self) -> str:
        if self.weights is None:
            return self.name
        return f"{self.name}-{hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()[:16]}"

    @property
    def frechet_name(self) -> str:
        return "fid"

    @property
    def kernel_name(self) -> str:
        return "kid"

    def prepare(self, fid_weights: str | None = None) -> str | None:
        if fid_weights is None:
            return super().prepare()
        self.weights = fid_weights
        self.load()
        return None

    def _make(self) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if self.weights is not None:
            _check_weights(Path(self.weights))
        try:
            return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], self.weights)
        except (URLError, OSError) as error:
            raise UserError(
                f"the weights of Inception cannot be downloaded ({_reason(error)}): pass a file with "
                "--model.fid_weights FILE"
            ) from error
        except (RuntimeError, TypeError, AttributeError) as error:  # other tensors, or none
            raise UserError(
                f"model.fid_weights {self.weights} does not contain the Inception weights of FID"
            ) from error

    def _features(self, network: nn.Module, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        features: Tensor = network(images)[0]
        return features.float()


class TransformersFeatures(_Network):
    """The pooled features of an image by a network of `transformers`: DINOv2, ConvNeXt, ViT and others.

    For DINOv2 and other vision transformers this is the first token, after the final norm. Images are resized
    by antialiased bilinear interpolation, so scores are close to those published with bicubic, but not equal.

    Args:
        name: name on the Hugging Face hub, for example facebook/dinov2-small, or a folder with a model.
        size: side to which images are resized, px.
    """

    def __init__(self, name: str, size: int = 224) -> None:
        if size < 8:
            raise UserError(f"extractor {name}: size {size} must be 8 px or more")
        self.source, self.size, self.name = name, size, name_in_scores(name)

    @property
    def fingerprint(self) -> str:
        return f"{self.source}-{self.size}"

    @cached_property
    def dim(self) -> int:  # type: ignore[override]
        return len(self(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8))[0])

    def _make(self) -> nn.Module:
        network: nn.Module = from_pretrained("AutoModel", self.source, what="extractor")
        return network

    def _features(self, network: nn.Module, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        scaled = images.float() / 127.5 - 1
        output = network(pixel_values=normalised(scaled, self.size, normalisation_of(self.source)))
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1).float()


class DualEncoderFeatures(Extractor):
    """The image encoder of CLIP, SigLIP and similar networks.

    Args:
        encoder: for example imagen_pl.models.pretrained.dual_encoders.TransformersDualEncoder.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder, self.name = encoder, name_in_scores(encoder.name)
        self.defines_cmmd = self.name == "clip_vit_large_patch14_336"

    @property
    def fingerprint(self) -> str:
        return self.encoder.name

    @cached_property
    def dim(self) -> int:  # type: ignore[override]
        return len(self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0])

    def load(self) -> None:
        self.encoder.load()

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        with torch.autocast(images.device.type, enabled=False):
            scaled = (part.float() / 127.5 - 1 for part in images.split(_BATCH_SIZE))
            return torch.cat([self.encoder.images(part) for part in scaled])


def name_in_scores(name: str) -> str:
    """The short form of a network's name, for example dinov2_small for facebook/dinov2-small."""
    return re.sub(r"\W+", "_", name.rstrip("/").rpartition("/")[2]).lower()


def _check_weights(file: Path) -> None:
    """Raise UserError unless the file holds tensors only; torch-fidelity would run any code inside it."""
    if not file.is_file():
        raise UserError(f"model.fid_weights {file}: there is no such file")
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on where the file is damaged
        raise UserError(
            f"model.fid_weights {file} cannot be read: it is damaged or contains no weights"
        ) from error


def _reason(error: Any) -> str:
    return str(getattr(error, "reason", None) or error)
