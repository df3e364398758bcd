"""The interface of an autoencoder, in whose latents a GAN can be trained.

Axes: b batch, c channels of a latent, h w its places.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.pretrained.backbones import FrozenNetwork

Images = Float[Tensor, "b _k _h _w"]
Latents = Float[Tensor, "b c h w"]


class Autoencoder(FrozenNetwork):
    """A frozen network from images to smaller latents and back.

    It is not an `nn.Module` of the GAN: no optimizer, average or DDP sees its weights. A generator and its
    moving average share one object, so that the weights are in memory once, and once in a checkpoint.

    Attributes, set by the subclass:
        latent_channels: c, of its latents.
        downsampling: side of an image divided by that of its latents.
        image_channels: of the images: 3 for RGB.
        in_checkpoints: whether checkpoints and releases hold its weights; if not, they hold its settings, and
            the weights are read again by name.
    """

    latent_channels: int
    downsampling: int
    image_channels: int = 3
    in_checkpoints: bool = True

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """Latents, float32, with a mean of about 0 and a variance of about 1, of images (-1 to 1)."""
        network = self.on(images.device)
        with torch.autocast(images.device.type, enabled=False):
            x = images.float().contiguous(memory_format=torch.channels_last)
            return self._encode(network, x).contiguous(memory_format=torch.channels_last)

    def decode(self, latents: Latents) -> Images:
        """Images, float32, about -1 to 1; differentiable in the latents.

        It computes in bfloat16 where the caller does, and never in float16, in which some decoders overflow.
        """
        network, device = self.on(latents.device), latents.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return self._decode(network, latents.float()).float()

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, as a checkpoint holds them."""
        return dict(self._network.state_dict())

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Use these weights, of a checkpoint or a release."""
        self._network.load_state_dict(dict(weights))

    def arguments_to_keep(self) -> dict[str, Any]:
        """Constructor arguments that a run's configuration keeps, so that no other file is needed later."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the class and the weights, which are read for it.

        Raises:
            UserError: the weights are not available.
        """
        digest = hashlib.sha256(f"{type(self).__module__}.{type(self).__qualname__}".encode())
        for name, weight in self._network.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def __deepcopy__(self, memo: dict[int, Any]) -> Autoencoder:
        # It is frozen: the generator's moving average uses the same one.
        return self

    @abstractmethod
    def _encode(self, network: nn.Module, images: Images) -> Latents:
        """Latents of images, both float32."""

    @abstractmethod
    def _decode(self, network: nn.Module, latents: Latents) -> Images:
        """Images of latents, both float32."""
