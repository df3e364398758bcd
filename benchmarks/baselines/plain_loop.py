"""The floor: what a plain loop of a few hundred lines learns of the emoji in the same time.

    python -m benchmarks.baselines.plain_loop --minutes 8 --out runs/plain_loop
    python -m benchmarks.quality runs/plain_loop --extractor efficientnet_lite1

No growing, no words but the pooled vector, no captioner, no questions, no teacher: a generator steered by
scale and shift (FiLM, arXiv:1709.07871), a discriminator by projection (arXiv:1802.05637), the relativistic
loss with both penalties of R3GAN (arXiv:2501.05441), captions rolled by one as mismatches. It shares the
data, the encoded captions and the protocol with imagen_pl, and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.autograd import grad
from tqdm import tqdm

from benchmarks.baselines.handover import asked_captions, write_pictures
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.transforms import decode
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.models.text.feature_cache import TextCache
from imagen_pl.training.precision import choose_precision
from imagen_pl.training.step_logger import peak_memory_gb

LATENT, TEXT, STYLE = 64, 384, 256
# 32 px is reached by, and left by, shuffling pixels into channels: cheap, at the price of a checkerboard.
WIDTHS_G = {4: 192, 8: 128, 16: 96}
WIDTHS_D = {16: 64, 8: 128, 4: 192}


class Film(nn.Module):
    """Two convolutions, each scaled and shifted by the style."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width_in, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.skip = nn.Conv2d(width_in, width, 1)
        self.steer = nn.Linear(STYLE, 4 * width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale_1, shift_1, scale_2, shift_2 = self.steer(style)[..., None, None].chunk(4, 1)
        y = F.leaky_relu(self.first(x) * (1 + scale_1) + shift_1, 0.2)
        return self.skip(x) + 0.5 * F.leaky_relu(self.second(y) * (1 + scale_2) + shift_2, 0.2)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Sequential(
            nn.Linear(LATENT + TEXT, STYLE), nn.LeakyReLU(0.2), nn.Linear(STYLE, STYLE)
        )
        widths = list(WIDTHS_G.values())
        self.start = nn.Linear(STYLE, widths[0] * 16)
        self.blocks = nn.ModuleList(
            Film(before, width) for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        self.paint = nn.Conv2d(widths[-1], 3 * 4, 3, 1, 1)

    def forward(self, z: Tensor, text: Tensor) -> Float[Tensor, "b 3 32 32"]:
        style = self.style(torch.cat([F.normalize(z) * LATENT**0.5, text], 1))
        x = self.start(style).unflatten(1, (-1, 4, 4))
        for i, block in enumerate(self.blocks):
            x = block(F.interpolate(x, scale_factor=2.0) if i else x, style)
        return F.pixel_shuffle(self.paint(x), 2).float()


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = list(WIDTHS_D.values())
        self.from_pixels = nn.Conv2d(3 * 4, widths[0], 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(a, a, 3, 1, 1), nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(a, b, 1)])
            for a, b in itertools.pairwise(widths)
        )
        self.sum_up = nn.Linear(widths[-1] * 16, STYLE)
        self.text = nn.Linear(TEXT, STYLE)

    def forward(self, images: Tensor, text: Tensor) -> Float[Tensor, " b"]:
        x = self.from_pixels(F.pixel_unshuffle(images, 2))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            first, second, skip = block
            y = F.leaky_relu(second(F.leaky_relu(first(x), 0.2)), 0.2)
            x = F.avg_pool2d(skip(x) + 0.5 * y, 2)
        seen = F.leaky_relu(self.sum_up(x.flatten(1)), 0.2)
        return ((seen * self.text(text)).sum(1) / STYLE**0.5).float()


def training_set() -> tuple[UInt8[Tensor, "n 3 32 32"], Float[Tensor, "n c"]]:
    source = EmojiSource()
    rows = source.load(SkippedImages())["train"]
    images = torch.stack([decode(source.image(row), 32) for row in tqdm(rows, desc="images", delay=2)])
    encoder = FrozenTextEncoder()
    captions = [row.captions[0] for row in rows]
    return images, TextCache.build(encoder, captions)(captions).pooled


def train(
    minutes: float, images_wanted: int | None, batch: int, seed: int
) -> tuple[Generator, dict[str, float]]:
    images, texts = training_set()
    torch.manual_seed(seed)
    g, d = (
        Generator().to(memory_format=torch.channels_last),
        Discriminator().to(memory_format=torch.channels_last),
    )
    average = copy.deepcopy(g).eval()
    opt_g = torch.optim.Adam(g.parameters(), lr=4e-4, betas=(0.0, 0.99), fused=True)
    opt_d = torch.optim.Adam(d.parameters(), lr=4e-4, betas=(0.0, 0.99), fused=True)
    bar = tqdm(desc="images", unit_scale=batch, mininterval=10)
    bfloat16 = choose_precision("cpu").name == "bf16-mixed"  # as imagen-pl fit chooses
    start, step = time.monotonic(), 0

    def over(seconds: float) -> bool:
        return seconds >= 60 * minutes if images_wanted is None else step * batch >= images_wanted

    while not over(seconds := time.monotonic() - start):
        real, text = _some(images, texts, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                fake = g(torch.randn(batch, LATENT), text)
            judged = d(real, text)
            loss_d = (
                F.softplus(d(fake, text) - judged).mean()
                + F.softplus(d(real, text.roll(1, 0)) - judged).mean()
            )
        if step % 4 == 0:  # in float32, and four times as strong for it
            for x in (real, fake):
                x = x.detach().requires_grad_()
                (slope,) = grad(d(x, text).sum(), x, create_graph=True)
                loss_d = loss_d + 4 * 0.5 * slope.square().sum((1, 2, 3)).mean()
        _step(opt_d, loss_d)
        real, text = _some(images, texts, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            fake = g(torch.randn(batch, LATENT), text)
            loss_g = F.softplus(d(real, text) - d(fake, text)).mean()
        _step(opt_g, loss_g)
        step += 1
        decay = 0.5 ** (batch / 5000)
        with torch.no_grad():
            for mean, new in zip(average.parameters(), g.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        bar.update()
    return average, {
        "images_seen": step * batch,
        "images_per_second": step * batch / seconds,
        "generator_parameters": sum(p.numel() for p in g.parameters()),
        "discriminator_parameters": sum(p.numel() for p in d.parameters()),
        "peak_memory_gb": peak_memory_gb(torch.device("cpu")),
    }


def _some(images: Tensor, texts: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(images), (batch,))
    real = images[rows].float() / 127.5 - 1
    return real.contiguous(memory_format=torch.channels_last), texts[rows]


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def draw(generator: Generator, captions: list[str], seed: int) -> UInt8[np.ndarray, "n 32 32 3"]:
    text = TextCache.build(FrozenTextEncoder(), captions)(captions).pooled
    z = torch.randn(len(captions), LATENT, generator=torch.Generator().manual_seed(seed))
    images = torch.cat([generator(z[i : i + 50], text[i : i + 50]) for i in range(0, len(captions), 50)])
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--images", type=int, help="see so many, however long it takes: on a busy machine")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    generator, about = train(options.minutes, options.images, options.batch, options.seed)
    write_pictures(options.out, draw(generator, asked_captions(), options.seed), about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
