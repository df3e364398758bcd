"""A toy data set that shows within minutes whether the latent is used: 8 captions with 8 images each.

    python -m benchmarks.latent_toy
    python -m benchmarks.latent_toy grouped trial --images 80000

Small networks learn 64 emoji at 16 px whose captions are eight words, such as "animal". Then 256 images are
sampled of each caption. A picture is found if one of them is nearer to it than to any other picture, and at
most half as far from it as the nearest other picture of the 64 is, by the pixels. Prints a Markdown table,
and writes a grid a recipe: the eight pictures of each caption, then sixteen samples.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from benchmarks.machine import describe_machine
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.callbacks.run_length import RunLength
from imagen_pl.data.build_emoji import SHIPPED
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source
from imagen_pl.data.transforms import decode
from imagen_pl.imaging.grids import labelled_grid, to_pil, to_uint8
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.base import LossTerm
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.losses.text_matching import ImageTextContrastive, MismatchedCaptions
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.schedules import Cosine, Stage
from imagen_pl.training.atomic_checkpoints import AtomicCheckpointIO
from imagen_pl.training.muon import Muon

SIZE, BATCH, SAMPLES = 16, 32, 256
CAPTIONS = {
    "animal": ["cat face", "dog face", "panda", "frog", "monkey face", "pig face", "lion", "fox"],
    "fruit": [
        "red apple", "banana", "grapes", "lemon", "strawberry", "watermelon", "pineapple", "cherries",
    ],
    "vehicle": [
        "automobile", "bus", "bicycle", "sailboat", "locomotive", "rocket", "tractor", "helicopter",
    ],
    "heart": [
        "red heart", "blue heart", "green heart", "broken heart", "heart with arrow", "heart with ribbon",
        "two hearts", "black heart",
    ],
    "weather": [
        "sun", "cloud", "rainbow", "snowflake", "umbrella", "high voltage", "crescent moon", "fire",
    ],
    "sport": [
        "basketball", "soccer ball", "american football", "baseball", "tennis", "bowling", "boxing glove",
        "trophy",
    ],
    "building": ["house", "castle", "church", "hospital", "tent", "factory", "post office", "hotel"],
    "plant": [
        "rose", "sunflower", "tulip", "cherry blossom", "cactus", "four leaf clover", "maple leaf",
        "palm tree",
    ],
}  # fmt: skip


MUON = partial(Muon, lr=2e-3, momentum=0.95, betas=(0.0, 0.99))
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))


@dataclass(frozen=True)
class Recipe:
    """What differs between the recipes.

    penalty: weight of R1 and R2.
    contrastive: weight of ImageTextContrastive in the generator's loss; 0 leaves the term out.
    pictures_per_caption: of the data, and the discriminator's `minibatch_stddev` if it is more than 1.
    optimizer: the generator's.
    """

    penalty: float = 5.0
    contrastive: float = 0.0
    pictures_per_caption: int = 1
    optimizer: Callable[..., torch.optim.Optimizer] = MUON


RECIPES = {
    "trial": Recipe(penalty=0.5, contrastive=1.0),
    "no_contrastive": Recipe(penalty=0.5),
    "strong_penalties": Recipe(),
    "grouped": Recipe(penalty=2.0, pictures_per_caption=4),
    "adam": Recipe(optimizer=ADAM),
}


@dataclass(frozen=True)
class Found:
    """How many of the 64 pictures the samples show.

    pictures: pictures that are found.
    close: share of samples that show a picture of their caption.
    right_caption: share of samples whose nearest picture has their caption.
    spread: mean distance between two samples of a caption, divided by that between two of its pictures.
    """

    pictures: int
    close: float
    right_caption: float
    spread: float


class ToyPictures(Source):
    """The 64 emoji, in noto style."""

    path = "toy"

    def __init__(self) -> None:
        table = parquet.read_table(SHIPPED, columns=["name", "style", "skin_tone", "image"])
        kept = [row for row in table.to_pylist() if row["style"] == "noto" and not row["skin_tone"]]
        names = {row["name"]: row["image"]["bytes"] for row in kept}
        self.images = [
            names.get(name) or next(names[other] for other in names if other.startswith(name))
            for words in CAPTIONS.values()
            for name in words
        ]

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        captions = [caption for caption in CAPTIONS for _ in range(8)]
        return {"train": [Row(f"{i}", (caption,), i) for i, caption in enumerate(captions)]}

    def image(self, row: Row) -> bytes:
        return self.images[row.place]

    def pixels(self) -> Float[Tensor, "8 8 d"]:
        """-1 to 1."""
        images = torch.stack([decode(image, SIZE) for image in self.images])
        return (images.float() / 127.5 - 1).flatten(1).unflatten(0, (8, 8))


def build(recipe: Recipe, kimg: float, seed: int, width: int = 32) -> TextToImageGAN:
    """The GAN, with networks of `width` maps at 16 px."""
    torch.manual_seed(seed)
    channels = {4: 4 * width, 8: 2 * width, 16: width}
    stddev = recipe.pictures_per_caption if recipe.pictures_per_caption > 1 else 0
    losses: list[LossTerm] = [MismatchedCaptions()]
    if recipe.contrastive:
        losses.append(ImageTextContrastive(128, generator_weight=recipe.contrastive))
    return TextToImageGAN(
        generator=StyleGenerator(channels, style_dim=128, text_attention_at=[8]),
        discriminator=MultiscaleDiscriminator(channels, final_dim=128, minibatch_stddev=stddev),
        text_encoder=FrozenTextEncoder(),
        adversarial=Relativistic(),
        generator_optimizer=recipe.optimizer,
        discriminator_optimizer=partial(torch.optim.Adam, lr=8e-4, betas=(0.0, 0.99), fused=True),
        penalties=[R1(recipe.penalty, every=4), R2(recipe.penalty, every=4)],
        losses=losses,
        learning_rate_schedule=Cosine(start=1.0, end=0.25, kimg=kimg, warmup_kimg=0.3),
        ema_halflife_kimg=1.0,
        share_passes=True,
        gradient_clip=10.0,
        seed=seed,
    )


def train(recipe: Recipe, images: int, seed: int = 0, width: int = 32, **settings: Any) -> TextToImageGAN:
    """A whole training; `settings` are the Trainer's."""
    gan = build(recipe, images / 1000, seed, width)
    data = CaptionedImages(
        ToyPictures(), num_workers=0, epoch_kimg=images / 1000, val_fraction=0,
        pictures_per_caption=recipe.pictures_per_caption, seed=seed,
    )  # fmt: skip
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": -1,
    }  # fmt: skip
    growing = ProgressiveGrowing([Stage(SIZE, kimg=images / 1000, batch_size=BATCH)])
    trainer = Trainer(
        callbacks=[growing, RunLength(images, None)], plugins=[AtomicCheckpointIO()], **{**quiet, **settings}
    )
    trainer.fit(gan, data)
    return gan


@torch.no_grad()
def sample(gan: TextToImageGAN, number: int = SAMPLES) -> Float[Tensor, "8 n d"]:
    """Samples of each caption, -1 to 1."""
    parts = [gan.sample([caption] * number, seed) for seed, caption in enumerate(CAPTIONS)]
    return torch.stack(parts).flatten(2).clamp(-1, 1)


def find(samples: Float[Tensor, "8 n d"], pictures: Float[Tensor, "8 8 d"]) -> Found:
    everything = pictures.flatten(0, 1)
    apart = torch.cdist(everything, everything).fill_diagonal_(torch.inf).min(1).values
    distance, nearest = torch.cdist(samples.flatten(0, 1), everything).min(1)
    own = torch.arange(8).repeat_interleave(samples.shape[1])
    right = nearest // 8 == own
    shown = right & (distance <= 0.5 * apart[nearest])
    spread = [torch.pdist(s).mean() / torch.pdist(p).mean() for s, p in zip(samples, pictures, strict=True)]
    return Found(
        nearest[shown].unique().numel(),
        float(shown.float().mean()),
        float(right.float().mean()),
        float(torch.stack(spread).mean()),
    )


def sheet(samples: Float[Tensor, "8 n d"], pictures: Float[Tensor, "8 8 d"]) -> Image.Image:
    shown = torch.cat([pictures, samples[:, :16]], dim=1).unflatten(2, (3, SIZE, SIZE)).flatten(0, 1)
    enlarged = torch.nn.functional.interpolate(shown, scale_factor=3, mode="nearest")
    labels = [text for caption in CAPTIONS for text in (caption, *[" "] * 7, "samples", *[" "] * 15)]
    return labelled_grid(to_pil(to_uint8(enlarged)), labels, columns=24)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(RECIPES)}; by default all")
    parser.add_argument("--images", type=int, default=80_000, help="images to train on")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and samples")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the grids")
    options = parser.parse_args()
    if unknown := set(options.recipes) - RECIPES.keys():
        parser.error(f"no recipe is named {', '.join(unknown)}; they are {', '.join(RECIPES)}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pictures = ToyPictures().pixels()
    print(f"{describe_machine()}, one thread, {options.images:,} images, seed {options.seed}\n")
    print("| recipe | pictures found, of 64 | samples that show one | of the right caption | spread |")
    print("|" + "---|" * 5)
    for name in options.recipes or RECIPES:
        samples = sample(train(RECIPES[name], options.images, options.seed))
        found = find(samples, pictures)
        numbers = f"{found.pictures} | {found.close:.0%} | {found.right_caption:.0%} | {found.spread:.2f}"
        print(f"| {name} | {numbers} |", flush=True)
        sheet(samples, pictures).save(options.out / f"toy_{name}.png")


if __name__ == "__main__":
    main()
