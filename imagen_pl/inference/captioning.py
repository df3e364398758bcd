"""`imagen-pl caption`: a trained captioner in use, pictures in, captions out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.models.captioner.model import Captioner
from imagen_pl.models.captioner.weights import WEIGHTS, load_weights
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.storage.checkpoint_io import check_same_tensors, read_checkpoint
from imagen_pl.storage.model_files import CAPTIONER, released
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.captioner_module import DESCRIPTION
from imagen_pl.types import Growth

_HOW = (
    "train with one (imagen-pl fit ... --config configs/teacher/captioning.yaml), or one by itself "
    "(imagen-pl fit-captioner --config configs/experiment/captioner.yaml)"
)
_ADVICE = "Its configuration, or this package's code, has changed since."


class CaptioningPipeline:
    """Says what pictures show. `load_captioner` makes one.

    Args:
        captioner: the network.
        growth: how large and how far faded in the images were that it learnt last.
        discriminator: whose maps it sees, where it sees those.
    """

    def __init__(
        self, captioner: Captioner, growth: Growth, discriminator: Discriminator | None = None
    ) -> None:
        self.captioner = captioner.eval().requires_grad_(False)
        self.growth = growth
        self.discriminator = None if discriminator is None else discriminator.eval().requires_grad_(False)

    @property
    def resolution(self) -> int:
        """Side of the images that it looks at, px."""
        return self.growth.resolution

    @property
    def device(self) -> torch.device:
        return next(self.captioner.parameters()).device

    def to(self, device: str | torch.device) -> CaptioningPipeline:
        """Look at pictures on another device."""
        for network in (self.captioner, self.discriminator):
            if network is not None:
                network.to(device)
        return self

    @torch.no_grad()
    def extract_features(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b m d"]:
        """What the captioner remembers of images of its resolution."""
        shown = images.to(self.device).float() / 127.5 - 1
        seen = None
        if self.discriminator is not None:
            seen = self.discriminator.extract_features(shown, self.growth).maps
        return self.captioner.extract_features(shown, seen)

    def caption(self, image: bytes | Path, num_beams: int = 1) -> str:
        """The likeliest caption of a picture, encoded or in a file. Raises one of UNREADABLE."""
        return self.captioner.caption(self._open(image), num_beams)[0]

    def caption_batch(self, images: UInt8[Tensor, "b 3 h w"], num_beams: int = 1) -> list[str]:
        """The likeliest caption of each of several images of its resolution, as `decode` gives them."""
        return self.captioner.caption(self.extract_features(images), num_beams)

    def draw(self, image: bytes | Path, num_captions: int, seed: int = 0) -> list[str]:
        """Captions drawn at random; the k-th depends on the picture and `seed + k` alone."""
        memory, drawn = self._open(image), []
        with torch.random.fork_rng():
            for k in range(num_captions):
                torch.manual_seed(seed + k)
                drawn += self.captioner.caption(memory, do_sample=True, top_p=0.9)
        return drawn

    def _open(self, image: bytes | Path) -> Float[Tensor, "b m d"]:
        return self.extract_features(decode(image, self.resolution)[None])


def load_captioner(path: str | Path, device: str | torch.device | None = None) -> CaptioningPipeline:
    """A captioner from its folder, or from a run or .ckpt file that was trained with one.

    Args:
        path: as runs/captioner, runs/quickstart, runs/quickstart/checkpoints/last.ckpt, or a release, or the
            name of one that ships, that holds a captioner.
        device: where to look; None takes the first CUDA device if there is one.

    Raises:
        UserError: nothing is there, it is damaged, or there is no captioner in it.
    """
    path = released(path)
    if (path / CAPTIONER / WEIGHTS).is_file():
        path /= CAPTIONER
    if path.is_file():
        found = _from_checkpoint(path)
    elif (path / WEIGHTS).is_file():
        found = _from_folder(path)
    elif (path / DESCRIPTION).is_file():
        raise UserError(f"model {path} is a release that holds no captioner: {_HOW}")
    elif path.is_dir():
        newest = RunFolder(path).newest_checkpoint()
        if newest is None:
            raise UserError(f"model {path}: neither a run with checkpoints/*.ckpt nor a captioner's folder")
        found = _from_checkpoint(newest)
    else:
        raise UserError(f"model {path}: there is no such run, checkpoint or captioner")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return found.to(device)


def _from_folder(folder: Path) -> CaptioningPipeline:
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        resolution, wanted = int(description["resolution"]), description["captioner"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"captioner {folder}: {DESCRIPTION} cannot be read ({reason})") from error
    captioner = _made({"captioner": wanted}, folder).captioner
    load_weights(captioner, folder)
    return CaptioningPipeline(captioner, Growth(resolution))


def _from_checkpoint(path: Path) -> CaptioningPipeline:
    checkpoint = read_checkpoint(path, mmap=True)
    held = checkpoint["state_dict"]
    config = yaml.safe_load(checkpoint.get("config", "")) or {}
    model = config.get("model") or {}
    terms = [term.get("init_args") or {} for term in model.get("losses") or []]
    term = next((settings for settings in terms if "captioner" in settings), model)
    home = next(
        (n[: n.index("captioner.")] for n in held if n.startswith("losses.") and ".captioner." in n), ""
    )
    if not term.get("captioner"):
        raise UserError(f"checkpoint {path} was trained without a captioner: {_HOW}")
    made = _made({"captioner": term["captioner"], "discriminator": model.get("discriminator")}, path)
    _fill(made.captioner, held, f"{home}captioner.", path)
    discriminator = made.discriminator if made.captioner.features.needs_discriminator else None
    if discriminator is not None:
        _fill(discriminator, held, "discriminator.", path)
    if "growth_resolution" in checkpoint:
        growth = Growth(checkpoint["growth_resolution"], checkpoint["growth_fade"])
    else:  # of a captioner's own run
        growth = Growth(config["data"]["resolution"])
    return CaptioningPipeline(made.captioner, growth, discriminator)


def _fill(network: torch.nn.Module, held: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    weights = {name.removeprefix(prefix): held[name] for name in held if name.startswith(prefix)}
    check_same_tensors(network.state_dict(), weights, path, _ADVICE)
    network.load_state_dict(weights)


def _made(description: dict[str, Any], path: Path) -> Any:
    """Networks by their class_path, with every argument checked against its type."""
    from jsonargparse import ArgumentError, ArgumentParser

    from imagen_pl.training.class_paths import import_all_parts

    import_all_parts()
    wanted = {name: value for name, value in description.items() if value is not None}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Captioner, "captioner")
    if "discriminator" in wanted:
        parser.add_subclass_arguments(Discriminator, "discriminator")
    try:
        config = parser.parse_object(wanted)
    except (ArgumentError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its captioner cannot be made: {reason}") from error
    return parser.instantiate_classes(config)
