"""A trained captioner as a pipeline from images to captions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.errors import UserError
from imagen_pl.inference.networks import build, default_device, fill, stored_config
from imagen_pl.models.captioner.model import Captioner
from imagen_pl.models.captioner.weights import load_weights
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.model_paths import CAPTIONER_WEIGHTS, DESCRIPTION, WEIGHTS, captioner_file
from imagen_pl.storage.upgrade import upgrade_description
from imagen_pl.types import Growth

_HOW = (
    "train with one (imagen-pl fit ... --config configs/teacher/captioning.yaml), or train a standalone one "
    "(imagen-pl fit-captioner --config configs/experiment/captioner.yaml)"
)


class CaptioningPipeline:
    """Captions images. `load_captioner` makes one.

    Args:
        captioner: the network.
        growth: resolution and fade of its last training images.
        discriminator: the network whose feature maps it reads, if it reads those.
        aspect_ratio: width of its training images / their height.
        alpha: whether they had alpha.
    """

    def __init__(
        self,
        captioner: Captioner,
        growth: Growth,
        discriminator: Discriminator | None = None,
        aspect_ratio: float = 1.0,
        alpha: bool = False,
    ) -> None:
        self.captioner = captioner.eval().requires_grad_(False)
        self.growth = growth
        self.processing = SampleProcessing(aspect_ratio=aspect_ratio, alpha=alpha)
        self.discriminator = None if discriminator is None else discriminator.eval().requires_grad_(False)

    @property
    def resolution(self) -> int:
        """Height of its input images, px."""
        return self.growth.resolution

    @property
    def device(self) -> torch.device:
        return next(self.captioner.parameters()).device

    def to(self, device: str | torch.device) -> CaptioningPipeline:
        """Move the networks to another device."""
        for network in (self.captioner, self.discriminator):
            if network is not None:
                network.to(device)
        return self

    @torch.no_grad()
    def extract_features(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b m d"]:
        """What the captioner remembers of images of its resolution."""
        shown = images.to(self.device).float() / 127.5 - 1
        seen = None
        if self.discriminator is not None:
            seen = self.discriminator.extract_features(shown, self.growth).maps
        return self.captioner.extract_features(shown, seen)

    def caption(self, image: bytes | Path, num_beams: int = 1) -> str:
        """The likeliest caption of a picture, encoded or in a file. Raises one of UNREADABLE."""
        return self.captioner.caption(self._open(image), num_beams)[0]

    def caption_batch(self, images: UInt8[Tensor, "b c h w"], num_beams: int = 1) -> list[str]:
        """The likeliest caption of each of several images, as `decode` gives them."""
        return self.captioner.caption(self.extract_features(images), num_beams)

    def decode(self, image: bytes | Path) -> UInt8[Tensor, "c h w"]:
        """A picture as `caption_batch` takes it. Raises one of UNREADABLE."""
        return self.processing.decode(image, self.resolution)

    def draw(self, image: bytes | Path, num_captions: int, seed: int = 0) -> list[str]:
        """Captions drawn at random; the k-th depends on the picture and `seed + k` alone."""
        memory, drawn = self._open(image), []
        with torch.random.fork_rng():
            for k in range(num_captions):
                torch.manual_seed(seed + k)
                drawn += self.captioner.caption(memory, do_sample=True, top_p=0.9)
        return drawn

    def _open(self, image: bytes | Path) -> Float[Tensor, "b m d"]:
        return self.extract_features(self.decode(image)[None])


def load_captioner(path: str | Path, device: str | torch.device | None = None) -> CaptioningPipeline:
    """A captioner from its folder, or from a run or .ckpt file that was trained with one.

    Of a run the checkpoint is opened that `imagen_pl.load` opens.

    Args:
        path: for example runs/captioner, runs/quickstart, runs/quickstart/checkpoints/last.ckpt, or a release
            that holds a captioner, or the name of one that ships.
        device: where to caption; None takes the first CUDA device if there is one.

    Raises:
        UserError: there is no such model, it is damaged, or there is no captioner in it.
    """
    file = captioner_file(path)
    if file.name == WEIGHTS:
        raise UserError(f"model {file.parent} is a release without a captioner: {_HOW}")
    found = _from_folder(file.parent) if file.name == CAPTIONER_WEIGHTS else _from_checkpoint(file)
    return found.to(default_device(device))


def _from_folder(folder: Path) -> CaptioningPipeline:
    try:
        description = upgrade_description(json.loads((folder / DESCRIPTION).read_text()))
        resolution, wanted = int(description["resolution"]), description["captioner"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"captioner {folder}: {DESCRIPTION} cannot be read ({reason})") from error
    captioner = build(Captioner, wanted, folder, "captioner")
    load_weights(captioner, folder)
    shape = (description.get("aspect_ratio", 1.0), description.get("alpha", False))
    return CaptioningPipeline(captioner, Growth(resolution), None, *shape)


def _from_checkpoint(path: Path) -> CaptioningPipeline:
    checkpoint = read_checkpoint(path, mmap=True)
    state = checkpoint["state_dict"]
    config = stored_config(checkpoint, path)
    model = config.get("model") or {}
    terms = [term.get("init_args") or {} for term in model.get("losses") or []]
    term = next((settings for settings in terms if "captioner" in settings), model)
    if not term.get("captioner"):
        raise UserError(f"checkpoint {path} was trained without a captioner: {_HOW}")
    prefix = next(
        (n[: n.index("captioner.")] for n in state if n.startswith("losses.") and ".captioner." in n), ""
    )
    captioner = build(Captioner, term["captioner"], path, "captioner")
    fill(captioner, state, path, f"{prefix}captioner.")
    discriminator = None
    if captioner.features.needs_discriminator:
        discriminator = build(Discriminator, model.get("discriminator"), path, "discriminator")
        fill(discriminator, state, path, "discriminator.")
    if "growth_resolution" in checkpoint:
        growth = Growth(checkpoint["growth_resolution"], checkpoint["growth_fade"])
    else:  # of a captioner's own run
        growth = Growth(config["data"]["resolution"])
    data = config.get("data") or {}
    shape = (data.get("aspect_ratio", 1.0), data.get("alpha", False))
    return CaptioningPipeline(captioner, growth, discriminator, *shape)
