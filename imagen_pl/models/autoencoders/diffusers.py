"""Autoencoders of the library diffusers, such as those of Stable Diffusion.

Axes: b batch, r pixels, c channels of a latent, s its side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.autoencoders.base import Autoencoder, Images, Latents
from imagen_pl.storage.hub import hub_has_address


class DiffusersAutoencoder(Autoencoder):
    """An AutoencoderKL of diffusers, such as stabilityai/sd-vae-ft-mse.

    Latents are the posterior's mean, shifted and scaled to a variance of about one by the model's own
    `shift_factor` and `scaling_factor`. Checkpoints and releases hold its name, not its weights.

    Args:
        name: a name on the Hugging Face hub, or a folder that `AutoencoderKL.save_pretrained` wrote.
        subfolder: folder of the autoencoder within a pipeline's repository, such as vae; None if it is the
            repository itself.
    """

    in_checkpoints = False

    def __init__(self, name: str, subfolder: str | None = None) -> None:
        self.name, self.subfolder = name, subfolder
        settings = self._get("load_config")
        self.latent_channels = int(settings["latent_channels"])
        self.downsampling = int(2 ** (len(settings["block_out_channels"]) - 1))
        self.scale = float(settings.get("scaling_factor") or 1.0)
        self.shift = float(settings.get("shift_factor") or 0.0)

    def _read(self) -> nn.Module:
        network: nn.Module = self._get("from_pretrained", torch_dtype=torch.float32)
        return network

    def _get(self, method: str, **options: Any) -> Any:
        """What a method of AutoencoderKL returns.

        Raises:
            UserError: diffusers is not installed, or the autoencoder is not available.
        """
        try:
            from diffusers import AutoencoderKL
            from diffusers.utils import logging
        except ModuleNotFoundError as error:
            raise UserError(
                f"autoencoder {self.name} needs the package diffusers: pip install diffusers"
            ) from error
        is_folder = Path(self.name).is_dir()
        if not is_folder and not hub_has_address():
            options["local_files_only"] = True  # else it retries for half a minute
        if self.subfolder is not None:
            options["subfolder"] = self.subfolder
        log_level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            return getattr(AutoencoderKL, method)(self.name, **options)
        except Exception as error:  # diffusers raises many types
            why = (
                "the folder contains no AutoencoderKL of diffusers"
                if is_folder
                else "there is no such folder, and it cannot be downloaded from the Hugging Face hub: check "
                "the name and the network, or give a folder"
            )
            raise UserError(f"autoencoder {self.name}: {why}") from error
        finally:
            logging.set_verbosity(log_level)

    def _encode(self, network: Any, images: Images) -> Latents:
        mean: Tensor = network.encode(images).latent_dist.mode()
        return (mean - self.shift) * self.scale

    def _decode(self, network: Any, latents: Latents) -> Images:
        images: Tensor = network.decode(latents / self.scale + self.shift).sample
        return images
