"""Autoencoders of a few kB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from imagen_pl.models.autoencoders.convolutional import (
    AutoencoderNetwork,
    AutoencoderSizes,
    save_autoencoder,
)


def write_autoencoder(folder: Path, seed: int = 0, **sizes: object) -> Path:
    """The folder of an untrained one; by default latents have 2 channels and a quarter of the side."""
    chosen: Any = {"latent_channels": 2, "channels": [4, 4], **sizes}
    torch.manual_seed(seed)
    network = AutoencoderNetwork(AutoencoderSizes(**chosen))
    with torch.no_grad():
        network.mean.normal_()
        network.std.uniform_(0.5, 2)
    save_autoencoder(network, AutoencoderSizes(**chosen), folder, {})
    return folder


def write_diffusers_autoencoder(folder: Path) -> Path:
    """A random AutoencoderKL: latents of 2 channels and half the side."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks: Any = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    network: Any = AutoencoderKL(
        block_out_channels=[4, 4], norm_num_groups=2, latent_channels=2, scaling_factor=0.5, **blocks
    )
    network.save_pretrained(folder)
    return folder
