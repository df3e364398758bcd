"""A small convolutional autoencoder with a KL term, as in latent diffusion (arXiv:2112.10752).

Axes: b batch, h w pixels, c channels of a latent, f feature maps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

import imagen_pl
from imagen_pl.errors import UserError
from imagen_pl.models.autoencoders.base import Autoencoder, Images, Latents
from imagen_pl.models.layers.equalized import PixelNorm
from imagen_pl.models.layers.initialisation import SLOPE, conv
from imagen_pl.models.layers.resampling import upsample
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.model_paths import DESCRIPTION

AUTOENCODER_WEIGHTS = "autoencoder.safetensors"
_FORMAT = 1
_MAKE = "`imagen-pl fit-autoencoder SOURCE --out FOLDER` makes one"


@dataclass
class AutoencoderSizes:
    """Sizes of a ConvAutoencoder.

    Args:
        latent_channels: channels of a latent.
        channels: feature maps at half of the images' side, at a quarter, and so on: two entries give latents
            of a quarter of the side, three of an eighth.
        blocks: residual blocks at each of these sizes.
        teacher_networks: names of the frozen networks that it was trained with, which must not score a model.
    """

    latent_channels: int = 4
    channels: list[int] = field(default_factory=lambda: [48, 96])
    blocks: int = 1
    teacher_networks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.latent_channels < 1 or self.blocks < 0 or not self.channels or min(self.channels) < 1:
            raise UserError(
                f"autoencoder sizes: latent_channels {self.latent_channels}, channels {self.channels} and "
                f"blocks {self.blocks} must be 1 or more (blocks 0 or more)"
            )

    @property
    def downsampling(self) -> int:
        """Side of an image divided by that of its latents."""
        return int(2 ** len(self.channels))


class ConvAutoencoder(Autoencoder):
    """The autoencoder that `imagen-pl fit-autoencoder` trains.

    A run keeps its sizes in its configuration and its weights in its checkpoints, so that a trained model
    does not need the folder.

    Args:
        path: its folder, from `imagen-pl fit-autoencoder`.
        sizes: its sizes; None reads them from the folder. A run sets them itself.
    """

    def __init__(self, path: str | None = None, sizes: AutoencoderSizes | None = None) -> None:
        if path is None and sizes is None:
            raise UserError(f"ConvAutoencoder.path is missing: name the autoencoder's folder; {_MAKE}")
        self.path = path
        self.sizes = _read_sizes(Path(path or "")) if sizes is None else sizes
        self.name = "autoencoder" if path is None else Path(path).name
        self.teacher_networks = tuple(self.sizes.teacher_networks)
        self.latent_channels, self.downsampling = self.sizes.latent_channels, self.sizes.downsampling
        self._is_filled = False

    def on(self, device: torch.device) -> nn.Module:
        network = super().on(device)
        if not self._is_filled:
            raise UserError(f"autoencoder {self.path}: there are no weights of these sizes there; {_MAKE}")
        return network

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        super().load_weights(weights)
        self._is_filled = True

    def __getstate__(self) -> dict[str, Any]:
        # Without a folder, a copy in another process could not read the weights again.
        return super().__getstate__() if self.path is not None else dict(self.__dict__)

    def arguments_to_keep(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes)}

    def _read(self) -> nn.Module:
        network = AutoencoderNetwork(self.sizes)
        file = Path(self.path or "") / AUTOENCODER_WEIGHTS
        self._is_filled = False
        if self.path is not None and file.is_file() and _same_sizes(_read_sizes(file.parent), self.sizes):
            try:
                network.load_state_dict(load_file(file))
            except (SafetensorError, RuntimeError) as error:
                raise UserError(f"autoencoder {file} is damaged; {_MAKE}") from error
            self._is_filled = True
        return network

    def _encode(self, network: nn.Module, images: Images) -> Latents:
        assert isinstance(network, AutoencoderNetwork)
        side = images.shape[-1]
        if side % self.downsampling:
            raise ValueError(f"images of {side} px are not a multiple of {self.downsampling}")
        return (network.posterior(images)[0] - network.mean) / network.std

    def _decode(self, network: nn.Module, latents: Latents) -> Images:
        assert isinstance(network, AutoencoderNetwork)
        return network.decode(latents * network.std + network.mean)


class AutoencoderNetwork(nn.Module):
    """Encoder and decoder, of images of any size.

    The first halving puts each square of four pixels into one place, which saves the layers at full size.
    There are no statistics over an image, so it can be trained on squares of larger images.

    Args:
        sizes: its sizes.

    Attributes:
        mean, std: of each channel of the latents of training images.
    """

    mean: Float[Tensor, "c 1 1"]
    std: Float[Tensor, "c 1 1"]

    def __init__(self, sizes: AutoencoderSizes) -> None:
        super().__init__()
        widths, latent = sizes.channels, sizes.latent_channels
        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), conv(12, widths[0], 3)]
        encoder += [ResidualBlock(widths[0]) for _ in range(sizes.blocks)]
        for fine, coarse in itertools.pairwise(widths):
            encoder += [nn.Conv2d(fine, coarse, 2, stride=2)]
            encoder += [ResidualBlock(coarse) for _ in range(sizes.blocks)]
        self.encoder = nn.Sequential(*encoder, conv(widths[-1], 2 * latent, 3))
        decoder: list[nn.Module] = [conv(latent, widths[-1], 3)]
        decoder += [ResidualBlock(widths[-1]) for _ in range(sizes.blocks)]
        for fine, coarse in reversed(list(itertools.pairwise(widths))):
            decoder += [Doubling(coarse, fine)]
            decoder += [ResidualBlock(fine) for _ in range(sizes.blocks)]
        self.decoder = nn.Sequential(
            *decoder, nn.LeakyReLU(SLOPE), conv(widths[0], 12, 3), nn.PixelShuffle(2)
        )
        self.register_buffer("mean", torch.zeros(latent, 1, 1))
        self.register_buffer("std", torch.ones(latent, 1, 1))

    def posterior(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c _h _w"], Float[Tensor, "b c _h _w"]]:
        """Mean and log variance of the latents, as the decoder reads them."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: Float[Tensor, "b c _h _w"]) -> Float[Tensor, "b 3 h w"]:
        """Images, about -1 to 1."""
        images: Tensor = self.decoder(latents)
        return images


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.first = conv(channels, channels, 3)
        self.second = conv(channels, channels, 3, zero=True)

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f h w"]:
        return x + self.second(F.leaky_relu(self.first(self.norm(x)), SLOPE))


class Doubling(nn.Module):
    """Doubles the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b _f 2*h 2*w"]:
        return upsample(self.conv(x))


def save_autoencoder(
    network: AutoencoderNetwork, sizes: AutoencoderSizes, folder: Path, about: Mapping[str, Any]
) -> None:
    """Write an autoencoder's folder; each file is complete or not written at all.

    Args:
        network: the network.
        sizes: its sizes.
        folder: the folder; it is created.
        about: how it was trained, for config.json.

    Raises:
        UserError: the disk is full.
    """
    weights = {name: each.cpu().contiguous() for name, each in network.state_dict().items()}
    with atomic_write(folder / AUTOENCODER_WEIGHTS) as file:
        file.write(safetensors_bytes(weights, {"format": "pt"}))
    described = {"format": _FORMAT, "imagen_pl": imagen_pl.__version__, "autoencoder": asdict(sizes), **about}
    with atomic_write(folder / DESCRIPTION) as file:
        file.write((json.dumps(described, indent=2) + "\n").encode())


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder holds an autoencoder."""
    return (folder / DESCRIPTION).is_file() and (folder / AUTOENCODER_WEIGHTS).is_file()


def _read_sizes(folder: Path) -> AutoencoderSizes:
    if not is_autoencoder(folder):
        raise UserError(f"there is no autoencoder in {folder}: {_MAKE}")
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        if described["format"] > _FORMAT:
            raise UserError(
                f"autoencoder {folder} was written by a newer imagen_pl ({described['imagen_pl']})"
            )
        return AutoencoderSizes(**described["autoencoder"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"autoencoder {folder} cannot be read: {DESCRIPTION} is damaged; {_MAKE}") from error


def _same_sizes(a: AutoencoderSizes, b: AutoencoderSizes) -> bool:
    return (a.latent_channels, a.channels, a.blocks) == (b.latent_channels, b.channels, b.blocks)
