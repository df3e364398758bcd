"""A published GigaGAN (arXiv:2303.05511) on the emoji in the same time: gigagan-pytorch 0.3.0, unpatched.

    make .venv/gigagan/installed      # the package, beside the environment; `make quality` does all of this
    PYTHONPATH=.venv/gigagan python -m benchmarks.baselines.gigagan --minutes 8 --out runs/gigagan
    python -m benchmarks.quality runs/gigagan --extractor efficientnet_lite1

It shares the data, the encoded captions and the protocol with imagen_pl. Networks, losses and their weights,
optimizers and averaging are the package's, in float32 and at its defaults, but for these:

- Sizes: for networks of 1.4 M and 2.3 M parameters.
- Attention: at 16 px. By default it is at 32 px too, made for larger images: here that is every pixel,
  it takes four times as long, and 12 GB.
- Captions: the package encodes them by OpenCLIP, whose weights it downloads. Here its adapter answers with
  the vectors that imagen_pl trains on, and the package's trainable text transformer goes on from there.
- Pairs: its discriminator step takes real images from one batch and captions from the next, so that real
  images never meet their own captions. Here it is handed the same batch twice.
- The contrastive loss is off: it needs OpenCLIP's image network.
- The matching loss is off: the logits that it is made of do not depend on the caption in this version (only
  those of the coarser scales do), and it overflows where they are large.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from gigagan_pytorch import Discriminator, Generator, GigaGAN, StyleNetwork, TextEncoder
from gigagan_pytorch.open_clip import OpenClipAdapter
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.baselines.handover import asked_captions, write_pictures
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.transforms import decode
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.models.text.feature_cache import TextCache
from imagen_pl.training.step_logger import peak_memory_gb

SIZE, CAPACITY, CHANNELS, STYLE, TEXT = 32, 8, 96, 64, 64
ATTENTION = (16,)
PENALTY_EVERY = 4  # steps; the package's default
DRAWN_AT_ONCE = 50


class CachedCaptions(OpenClipAdapter):
    """Stands where the package wants OpenCLIP."""

    dim_latent = FrozenTextEncoder().dim

    def __init__(self, cache: TextCache) -> None:
        nn.Module.__init__(self)  # what OpenClipAdapter does beside that is to download
        self.cache = cache

    def embed_texts(self, texts: list[str]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b t c"]]:
        features = self.cache(texts)
        return features.pooled, features.tokens


def make_gan(cache: TextCache, folder: Path) -> GigaGAN:
    return GigaGAN(
        generator=Generator(
            image_size=SIZE,
            dim_capacity=CAPACITY,
            dim_latent=CHANNELS,
            self_attn_resolutions=ATTENTION,
            cross_attn_resolutions=ATTENTION,
            style_network=StyleNetwork(dim=STYLE, depth=4, dim_text_latent=TEXT),
            text_encoder=TextEncoder(clip=CachedCaptions(cache), dim=TEXT, depth=1),
        ),
        discriminator=Discriminator(
            image_size=SIZE,
            dim_capacity=CAPACITY,
            attn_resolutions=ATTENTION,
            text_encoder=TextEncoder(clip=CachedCaptions(cache), dim=TEXT, depth=1),
        ),
        generator_contrastive_loss_weight=0.0,
        matching_awareness_loss_weight=0.0,
        model_folder=str(folder / "gigagan-models"),
        results_folder=str(folder / "gigagan-results"),
        accelerate_kwargs={"cpu": True},
    )


def training_set() -> tuple[UInt8[Tensor, "n 3 32 32"], list[str]]:
    source = EmojiSource()
    rows = source.load(SkippedImages())["train"]
    images = torch.stack([decode(source.image(row), SIZE) for row in tqdm(rows, desc="images", delay=2)])
    return images, [row.captions[0] for row in rows]


def train(
    gan: GigaGAN, images: UInt8[Tensor, "n 3 32 32"], captions: list[str], minutes: float, batch: int
) -> dict[str, object]:
    """What GigaGAN.forward does, for a time in place of a number of steps."""

    def some() -> tuple[Float[Tensor, "b 3 32 32"], list[str]]:
        rows = torch.randint(len(images), (batch,))
        return images[rows] / 255, [captions[row] for row in rows.tolist()]

    bar = tqdm(desc="images", unit_scale=batch, mininterval=10)
    start, step = time.monotonic(), 0
    while (seconds := time.monotonic() - start) < 60 * minutes:
        step += 1
        loss_d = gan.train_discriminator_step(
            dl_iter=iter([some()] * 2), apply_gradient_penalty=step % PENALTY_EVERY == 0
        )
        loss_g = gan.train_generator_step(dl_iter=iter([some()]), batch_size=batch)
        if not np.isfinite([*loss_d, *loss_g]).all():
            raise FloatingPointError(f"step {step}: {loss_d}, {loss_g}")
        bar.set_postfix(d=f"{loss_d.divergence:.2f}", g=f"{loss_g.divergence:.2f}", refresh=False)
        bar.update()
    return {
        "images_seen": step * batch,
        "images_per_second": step * batch / seconds,
        "seconds": seconds,
        "generator_parameters": gan.unwrapped_G.total_params,
        "discriminator_parameters": gan.unwrapped_D.total_params,
        "peak_memory_gb": peak_memory_gb(torch.device("cpu")),
        "losses": {"discriminator": loss_d._asdict(), "generator": loss_g._asdict()},
    }


def draw(gan: GigaGAN, captions: list[str], seed: int) -> UInt8[np.ndarray, "n 32 32 3"]:
    """By the averaged generator; its images are in 0..1."""
    z = torch.randn(len(captions), STYLE, generator=torch.Generator().manual_seed(seed))
    starts = tqdm(range(0, len(captions), DRAWN_AT_ONCE), desc="pictures", delay=2, mininterval=10)
    parts = (slice(start, start + DRAWN_AT_ONCE) for start in starts)
    images = torch.cat([gan.generate(texts=captions[part], noise=z[part]) for part in parts])
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/gigagan"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    images, captions = training_set()
    asked = asked_captions()
    gan = make_gan(TextCache.build(FrozenTextEncoder(), [*captions, *asked]), options.out)
    about = train(gan, images, captions, options.minutes, options.batch)
    write_pictures(options.out, draw(gan, asked, options.seed), about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
