"""The rules of `imagen-pl plan`: pure functions from data, time and speed to settings.

Each names its source: a paper, public code, or this project's own measurements and recipes ("the quickstart",
"folder64" and "coco256" are recipes under configs/experiment/). docs/planning.md lists them in a table. kimg
are thousands of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

RESOLUTIONS = (8, 16, 32, 64, 128, 256)
SMALLEST_USUAL = 32  # px; smaller only if the images are
# Channels at 1 px, from which `channels` follow; two steps up take about twice the time.
BASES = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576)

_QUICKSTART_HOURS = 8 / 60
_QUICKSTART_KIMG = 60.0
LONG_RUN_KIMG_PER_PX = 150.0
MANY_PASSES = 50.0
MANY_IMAGES = 100_000
FEW_IMAGES = 1_000
MOST_SHARED = 0.1


def channel_cap(base: int) -> int:
    """Largest number of channels: it doubles if `base` is eight times as large.

    Through the recipes: 256 at the quickstart's base, 512 at folder64's, 768 at coco256's.
    """
    return max(128, 128 * round(25.4 * base ** (1 / 3) / 128))


def channels(base: int, resolution: int, cap: int, smallest: int = 4) -> dict[int, int]:
    """Channels at each resolution: min(cap, base / resolution), at least 8.

    StyleGAN2-ADA's `channel_base` and `channel_max` (arXiv:2006.06676, public code): every resolution but the
    coarsest costs the same time.
    """
    sizes = [2**i for i in range(int(math.log2(smallest)), int(math.log2(resolution)) + 1)]
    return {size: max(8, min(cap, base // size)) for size in sizes}


def cost(base: int, resolution: int) -> float:
    """Relative time per image: multiply-adds of 3x3 convolutions plus a constant.

    It only guides the search: the chosen design is measured.
    """
    widths = channels(base, resolution, channel_cap(base))
    convolutions = sum(
        size**2 * width * (width + widths.get(size // 2, width)) for size, width in widths.items()
    )
    return convolutions + 2e6


def operations(base: int, resolution: int) -> float:
    """Operations per image in a training step: 2.2e9 in the quickstart (measured), proportional to `cost`."""
    return 2.2e9 * cost(base, resolution) / cost(1024, 32)


def narrowest(resolution: int, long_run: bool) -> int:
    """Smallest base worth training.

    Short runs: 1024 as in the quickstart, and at least 16 channels at full size. Long runs: 64 channels at
    full size, half of folder64's.
    """
    least = 64 * resolution if long_run else max(1024, 16 * resolution)
    return next((base for base in BASES if base >= least), BASES[-1])


def widest(resolution: int) -> int:
    """Largest base: 128 channels at full size as in folder64, and no more than coco256's."""
    return max(base for base in BASES if base <= max(128 * resolution, BASES[0]))


def is_long_run(kimg_at_most: float) -> bool:
    """Whether the time is enough for adversarial training without paired losses.

    Args:
        kimg_at_most: thousands of images that the narrowest networks see in the time.

    If this is less than a run at 32 px needs, losses that compare samples with the real images of their
    captions help: the quickstart and emoji64.yaml are such runs.
    """
    return kimg_at_most >= LONG_RUN_KIMG_PER_PX * SMALLEST_USUAL


def enough_kimg(resolution: int, long_run: bool, hours: float, images: int) -> float:
    """Thousands of images that a run should see before larger networks or images pay off.

    Long runs: 150 per pixel of the side, 9,600 at 64 px and 38,400 at 256 (folder64 has 10,100, coco256
    38,500; R3GAN, arXiv:2501.05441, anneals over 20,000). Short runs: 60 in the quickstart's eight minutes,
    and four times as many in eight times the time, so twice the time for each image (emoji64.yaml saw 174 in
    45 minutes). At least 4 passes over the data, if these are 200 or less.
    """
    if long_run:
        return LONG_RUN_KIMG_PER_PX * resolution
    by_time = _QUICKSTART_KIMG * (hours / _QUICKSTART_HOURS) ** (2 / 3)
    return max(by_time, min(4 * images / 1000, 200.0))


def pairs_fit(shared: float, passes: float) -> bool:
    """Whether losses may compare a sample with the real image of its caption.

    Args:
        shared: share of the images whose captions belong to other images as well, 0 to 1.
        passes: passes over the data.

    If a caption has several images, the generator learns their mean and loses variety (pix2pixHD,
    arXiv:1711.11585, has one image per input; in our trial on icons, eight seeds gave one image). Over many
    passes these losses memorise the images, and the adversarial loss does better.
    """
    return shared <= MOST_SHARED and passes < MANY_PASSES


def pixel_matching_share(kimg: float) -> float:
    """Share of the run over which the weight of pixel matching falls, two digits.

    40 kimg, nearly all of the quickstart, or half of a longer run (emoji64.yaml: 80 of 174). A run that sees
    fewer than 40 kimg falls over all of its images; else its weight would stay at the start.

    Args:
        kimg: thousands of images that the run sees.
    """
    return float(f"{min(max(40 / kimg, 0.5), 1.0):.2g}")


def needs_augmentation(images: int, passes: float) -> bool:
    """Whether to augment: discriminators memorise small sets, not 100,000 images (ADA, arXiv:2006.06676)."""
    return images < MANY_IMAGES and passes >= MANY_PASSES


def batch_size(kimg: float, gpus: int) -> int:
    """Images per step at full size: at least 20,000 steps, between 32 and 64 on one GPU, more on several.

    32 is the quickstart's, 64 folder64's, and 256 on eight GPUs coco256's: it grows by gpus^(2/3).
    StyleGAN2-ADA's `auto` also takes 32 to 64.
    """
    most = 64 * max(gpus, 1) ** (2 / 3)
    power = 2 ** math.floor(math.log2(min(max(kimg * 1000 / 20_000, 32), most) + 1e-6))
    return int(power) if gpus <= 1 else max(gpus, round(power / gpus) * gpus)


class StageLength(NamedTuple):
    """One stage of growth, in thousands of images."""

    resolution: int
    kimg: float
    fade_kimg: float
    batch_size: int


def stages(resolution: int, kimg: float, batch: int) -> list[StageLength]:
    """Growth from 8 px for 64 px and more; smaller images start at full size.

    Each stage sees twice as many images as the one before, the first 3% of the run, all but the last 35% at
    most: that is folder64 (3, 6, 12, 79%) and nearly coco256. Fades of 2, 3, 4, ... % shrink in proportion.
    ProGAN (arXiv:1710.10196) gives every stage 600 kimg and 600 to its fade. At 32 px growing did not help
    here (benchmarks/RESULTS.md). In long runs coarse stages have twice the batch size, as in ProGAN and
    folder64.
    """
    if resolution < 64:
        return [StageLength(resolution, nice(kimg), 0.0, batch)]
    sizes = [size for size in RESOLUTIONS if size <= resolution]
    before = 2 ** (len(sizes) - 1) - 1
    first = min(0.03, 0.35 / before)
    coarse = 2 * batch if batch > 32 else batch
    found = []
    for i, size in enumerate(sizes[:-1]):
        fade = nice(kimg * first * (i + 1) / 3) if i else 0.0
        found.append(StageLength(size, nice(kimg * first * 2**i), fade, coarse if size < 64 else batch))
    fade = nice(kimg * first * len(sizes) / 3)
    rest = kimg - sum(stage.kimg for stage in found)
    return [*found, StageLength(resolution, nice(rest), fade, batch)]


def adam_lr(width: int) -> float:
    """Adam's learning rate: 2e-4 at 512 channels (R3GAN), inverse to the width (GAT, arXiv:2509.24935).

    Never below 2e-4, nor above 8e-4.
    At 1e-3 a narrow discriminator exploded within a hundred steps (measured, docs/tuning.md).
    """
    return min(max(2e-4 * 512 / width, 2e-4), 8e-4)


class PenaltyLaw(NamedTuple):
    """Weight of R1 and R2 through two points: resolution, weight, resolution, weight."""

    low_resolution: int
    low: float
    high_resolution: int
    high: float


def penalty_law(resolution: int, long_run: bool) -> PenaltyLaw:
    """Weight of the gradient penalties, a power law of the resolution.

    Long runs use R3GAN's: 0.5 at 32 px (ImageNet-32), 2 at 64 (FFHQ-64), 150 at 256 (FFHQ-256); penalties
    are summed over pixels. Short runs have higher learning rates and need more at coarse sizes: 0.3 at 8 px,
    1 at 32 (the quickstart), 2 at 64 (emoji64.yaml).
    """
    if resolution > 64:
        return PenaltyLaw(64, 2.0, 256, 150.0)
    if long_run:
        return PenaltyLaw(32, 0.5, 64, 2.0)
    return PenaltyLaw(8, 0.3, 64, 2.0) if resolution == 64 else PenaltyLaw(8, 0.3, 32, 1.0)


def ema_halflife_kimg(kimg: float) -> float:
    """Half-life of the generator's average: 1.1 kimg^0.413.

    That is 5 for the 38 of the quickstart, and 50 for the 10,100 of folder64.
    StyleGAN2-ADA takes batch x 10/32: 10 to 20 for batches of 32 to 64.
    """
    return nice(1.1 * max(kimg, 0.1) ** 0.413)


def attention_to_words(resolution: int, long_run: bool) -> list[int]:
    """Resolutions with attention to tokens: 8 px in short runs, else 8 px to half the full size, at most 64.

    GigaGAN (arXiv:2303.05511) and the recipes.
    """
    if resolution <= 8:
        return []
    return [size for size in (8, 16, 32, 64) if size < resolution] if long_run else [8]


def nice(value: float) -> float:
    """The nearest of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten; 2 digits from 100 on."""
    if value >= 100:
        digits = 10 ** (math.floor(math.log10(value)) - 1)
        return float(round(value / digits) * digits)
    steps: Sequence[float] = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    power = 10.0 ** math.floor(math.log10(value))
    best = min(steps, key=lambda step: abs(math.log(step * power / value)))
    return float(f"{best * power:.3g}")
