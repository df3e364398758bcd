"""A trained model: pictures for prompts, and its release as safetensors with a config.json."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import imagen_pl
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.data.transforms import parse_background
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import to_pil, to_uint8
from imagen_pl.inference.networks import build, default_device, fill, stored_config
from imagen_pl.inference.pretrained_methods import PretrainedMethods
from imagen_pl.inference.refinement import can_refine, refinable, refined
from imagen_pl.inference.sampling_options import (
    USUAL_STEPS,
    check_guidance,
    check_refine,
    check_truncation,
)
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.latents import latents
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.model_files import (
    RELEASE_FORMAT,
    average_of,
    read_discriminator,
    read_release,
    save_release,
)
from imagen_pl.storage.model_paths import WEIGHTS, model_file
from imagen_pl.types import Growth, TextFeatures, width_of

if TYPE_CHECKING:
    from imagen_pl.lightning_module import TextToImageGAN

log = logging.getLogger(__name__)

_PIXELS_A_BATCH = 2**19


class TextToImage(PretrainedMethods):
    """Draws pictures for prompts. `load` makes one.

    Args:
        generator: the generator's average.
        text_encoder: the text encoder that it was trained with.
        growth: its stage of growth.
        description: what a release's config.json holds: how the networks are built and trained.
        file: the checkpoint or model.safetensors that it was loaded from, which may hold the discriminator.
    """

    def __init__(
        self,
        generator: Generator,
        text_encoder: TextEncoder,
        growth: Growth,
        description: dict[str, Any],
        file: Path | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.generator.to(memory_format=torch.channels_last)
        self.text_encoder, self.growth, self.description = text_encoder, growth, description
        self.file = file

    @classmethod
    def from_module(cls, module: TextToImageGAN) -> TextToImage:
        """A model that draws with the moving average of a TextToImageGAN, as after one's own Trainer's `fit`.

        It shares the weights with the module. It cannot be saved as a release, which needs the networks'
        class paths: `imagen-pl fit` stores those in its checkpoints.
        """
        description = {
            "images_seen": module.images_seen,
            "teacher_networks": module.teacher_networks(),
            "captions": list(module.example_captions),
            "alpha": module.alpha,
        }
        return cls(module.ema.generator, module.text_encoder, module.growth, description)

    @property
    def resolution(self) -> int:
        """Height of the pictures, px."""
        return self.growth.resolution

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures, px."""
        return width_of(self.resolution, self.generator.aspect_ratio), self.resolution

    @property
    def alpha(self) -> bool:
        """Whether the pictures have transparency: RGBA instead of RGB."""
        return bool(self.description.get("alpha"))

    @property
    def at_once(self) -> int:
        """Pictures that are drawn as one batch."""
        return max(1, min(64, _PIXELS_A_BATCH // math.prod(self.size)))

    @property
    def processing(self) -> SampleProcessing:
        """How the images that it was trained on were decoded."""
        return SampleProcessing(
            self.description.get("fit") or "crop",
            parse_background(self.description.get("background") or "white"),
            aspect_ratio=self.generator.aspect_ratio,
            alpha=self.alpha,
        )

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def to(self, device: str | torch.device) -> TextToImage:
        """Draw on another device."""
        self.generator.to(device)
        self.__dict__.pop("_wordless", None)  # it is on the old device
        return self

    def sample(
        self,
        prompts: Sequence[str] | str,
        seed: int = 0,
        num_images: int = 1,
        truncation: float = 1.0,
        guidance: float = 1.0,
        refine: int | None = None,
    ) -> list[Image.Image]:
        """Pictures for prompts: all of the first prompt, then all of the second.

        A picture is a function of its prompt and its seed alone: picture k of a prompt has seed
        `seed + k`, whatever else is asked for.

        Args:
            prompts: one or several.
            seed: of the first picture of each prompt.
            num_images: pictures a prompt.
            truncation: 0 to 1; less than 1 gives more typical, less varied pictures.
            guidance: 0 to 10; more than 1 follows the prompt more closely, less than 1 less.
            refine: 0 to 200 optimisation steps that bring each picture closer to what the generator's prior
                predicts for its prompt; 20 take about 1/3 s per picture on two cores. None takes 20 if the
                generator has a prior, else 0.

        Raises:
            UserError: num_images is below 1, truncation, guidance or refine is out of range, or the model's
                generator has no guidance or no prior.
        """
        if num_images < 1:
            raise UserError(f"num_images {num_images} must be 1 or more")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        pairs = [(prompt, seed + k) for prompt in prompts for k in range(num_images)]
        return list(self.draw(pairs, truncation, guidance, refine))

    def draw(
        self,
        pairs: Sequence[tuple[str, int]],
        truncation: float = 1.0,
        guidance: float = 1.0,
        refine: int | None = None,
        on_step: Callable[[int], object] | None = None,
    ) -> Iterator[Image.Image]:
        """Pictures for pairs of a prompt and a seed, a batch at a time, in order.

        Args:
            pairs: prompts and seeds.
            truncation: as of `sample`.
            guidance: as of `sample`.
            refine: as of `sample`.
            on_step: called after each refinement step of a batch with the number of its pictures.
        """
        check_truncation(truncation)
        check_guidance(guidance)
        steps = self.refine_steps(refine)
        size = self.at_once
        for start in range(0, len(pairs), size):
            yield from self._batch(pairs[start : start + size], truncation, guidance, steps, on_step)

    def refine_steps(self, refine: int | None) -> int:
        """The number of refinement steps: as given, or for None 20 if the generator has a prior, else 0.

        Raises:
            UserError: it is out of range, or above 0 for a generator without a prior.
        """
        if refine is None:
            return USUAL_STEPS if can_refine(self.generator) else 0
        if check_refine(refine):
            refinable(self.generator)
        return refine

    def _batch(
        self,
        pairs: Sequence[tuple[str, int]],
        truncation: float,
        guidance: float,
        refine: int,
        on_step: Callable[[int], object] | None,
    ) -> list[Image.Image]:
        z = torch.cat([latents([0], seed, self.generator.latent_dim) for _, seed in pairs])
        text = self.text_encoder.encode([prompt for prompt, _ in pairs], self.device)
        return self.pictures(z.to(self.device), text, truncation, guidance, refine, on_step)

    @torch.inference_mode()
    def pictures(
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        truncation: float = 1.0,
        guidance: float = 1.0,
        refine: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> list[Image.Image]:
        """Pictures for latents and text features in one batch, as `sample` draws them."""
        # A generator need not support guidance.
        how = (truncation,) if guidance == 1 else (truncation, guidance, self._wordless)
        if refine:
            generator, prior = refinable(self.generator)
            style = generator.style(z, text, *how)
            images = refined(generator, prior, style, text, self.growth, refine, on_step)
        else:
            images = self.generator(z, text, self.growth, *how)
        return to_pil(to_uint8(images))

    @cached_property
    def _wordless(self) -> TextFeatures:
        """Text features of the unconditional style, which is the mean style of these captions.

        The caption is "" if captions were dropped in training (classifier-free guidance, arXiv:2207.12598).
        Otherwise they are captions of the training set: a GAN without an unconditional half can use the mean
        over conditions (Zhang et al., Exploring Guided Sampling of Conditional GANs, ECCV 2024). With a ""
        that was not trained, guidance made pictures worse; with this mean it made them better
        (benchmarks/RESULTS.md).
        """
        if "guidance" not in inspect.signature(self.generator.forward).parameters:
            raise UserError(f"{type(self.generator).__name__} has no guidance: leave it at 1")
        captions = [""] if self.description.get("caption_dropout") else self.description.get("captions")
        if not captions:
            log.warning(
                'guidance needs the caption "", which this model may not have been trained with: '
                "pictures may get worse. Train again with data.caption_dropout"
            )
        return self.text_encoder.encode(captions or [""], self.device)

    def save(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, with_discriminator: bool = False
    ) -> Path:
        """Write a release: model.safetensors and config.json, each complete or not at all.

        Args:
            folder: the folder; it is created.
            dtype: of the weights; torch.bfloat16 or torch.float16 halve the file.
            with_discriminator: write discriminator.safetensors too, for fine-tuning by `init_from`.

        Raises:
            UserError: the disk is full, the model was made by `from_module`, or there is no discriminator.
        """
        if "generator" not in self.description:
            raise UserError(
                "this model does not know its networks' class paths, which a release needs: train with "
                "`imagen-pl fit`, or give TextToImage a description with generator and text_encoder"
            )
        discriminator = None
        if with_discriminator:
            discriminator = None if self.file is None else read_discriminator(self.file)
            if discriminator is None:
                raise UserError(
                    f"{self.file or 'this model'} has no discriminator to save: give the run or one of its "
                    "checkpoints, which always have it"
                )
        folder = Path(folder)
        save_release(folder, self.description, self.generator.state_dict(), dtype, discriminator)
        return folder


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    resolution: int | None = None,
    module: TextToImageGAN | None = None,
) -> TextToImage:
    """A model from a run's folder, a .ckpt file, or a release.

    Of a run, the best checkpoint is opened where it has the resolution of the newest, else the newest.

    Args:
        path: for example runs/quickstart, runs/quickstart/checkpoints/last.ckpt, a release's folder, its name
            on the Hugging Face hub as "owner/name", or "icons" or "emoji", which ship with
            this package.
        device: where to draw; None takes the first CUDA device if there is one.
        resolution: height of the pictures, px, one of the generator's; None takes the size that training has
            grown to. Blocks that training has not reached draw as their first weights do.
        module: for a .ckpt of one's own Trainer, which does not say how its networks are built: the
            TextToImageGAN, built as for training. The checkpoint's weights are loaded into it.

    Raises:
        UserError: there is no such model, it is damaged, its weights do not fit its configuration, or the
            generator does not have the resolution.
    """
    file = model_file(path)
    if file.name == WEIGHTS:
        model = _from_release(file.parent)
    elif module is not None:
        checkpoint = read_checkpoint(file)
        fill(module, checkpoint["state_dict"], file)
        module.on_load_checkpoint(checkpoint)
        model = TextToImage.from_module(module)
    else:
        model = _from_checkpoint(file)
    if resolution is not None:
        if resolution not in model.generator.resolutions:
            sizes = ", ".join(map(str, model.generator.resolutions))
            raise UserError(f"resolution {resolution} is not one the generator has: {sizes}")
        model.growth = Growth(resolution)
    return model.to(default_device(device))


def _from_checkpoint(path: Path) -> TextToImage:
    checkpoint = read_checkpoint(path, mmap=True)
    weights = average_of(checkpoint, path)
    config = stored_config(checkpoint, path)
    data = config.get("data", {})
    description = {
        "format": RELEASE_FORMAT,
        "imagen_pl": imagen_pl.__version__,
        "generator": _without_paths(config["model"]["generator"]),
        "text_encoder": config["model"]["text_encoder"],
        "resolution": checkpoint["growth_resolution"],
        "fade": checkpoint["growth_fade"],
        "images_seen": checkpoint["images_seen"],
        "teacher_networks": checkpoint.get("teacher_networks", []),
        "data": data.get("source"),
        "caption_dropout": data.get("caption_dropout", 0.0),
        # How the real images that it is compared with are decoded, and which of them were held out.
        "fit": data.get("fit", "crop"),
        "background": data.get("background", "white"),
        "alpha": data.get("alpha", False),
        "val_fraction": data.get("val_fraction"),
        "captions": checkpoint.get("captions", []),
    }
    return _build(description, weights, path)


def _without_paths(generator: dict[str, Any]) -> dict[str, Any]:
    """Leave out where its first weights came from: drawing does not need it, and other machines lack it.

    The same goes for the folder of an autoencoder whose weights are among the generator's.
    """
    arguments = {n: v for n, v in generator.get("init_args", {}).items() if n != "init_from"}
    autoencoder = arguments.get("autoencoder")
    if isinstance(autoencoder, dict) and autoencoder.get("init_args", {}).get("sizes"):
        arguments["autoencoder"] = {**autoencoder, "init_args": {**autoencoder["init_args"], "path": None}}
    return {**generator, "init_args": arguments}


def _from_release(folder: Path) -> TextToImage:
    description, weights = read_release(folder)
    return _build(description, weights, folder / WEIGHTS)


def _build(description: dict[str, Any], weights: dict[str, Tensor], path: Path) -> TextToImage:
    generator = build(Generator, description.get("generator"), path, "generator")
    text_encoder = build(TextEncoder, description.get("text_encoder"), path, "text_encoder")
    fill(generator, weights, path)
    growth = Growth(description["resolution"], description["fade"])
    return TextToImage(generator, text_encoder, growth, description, path)
