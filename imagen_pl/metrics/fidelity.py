"""How close enlarged images are to the true ones, pixel by pixel: PSNR and SSIM.

Axes: b batch, c channels, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen_pl.metrics.base import ImageMetric
from imagen_pl.metrics.distributed import sum_over_processes

PerImage = Float[Tensor, " b"]
# Weights of RGB, 0 to 255, in the luma of BT.601, 16 to 235, as papers on super-resolution use it.
_WINDOW = 11  # px
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


class Fidelity(ImageMetric):
    """Mean PSNR (dB) and SSIM (Wang et al., IEEE TIP 2004) of images with a true answer.

    Of colours (`psnr`, `ssim`) and of brightness alone (`psnr_y`, `ssim_y`), which papers report; the two
    differ by about two dB. It suits a generator that reads images, as an Upsampler; for images drawn from
    captions the real image is only one of many good answers.
    """

    def __init__(self) -> None:
        self._real: UInt8[Tensor, "b 3 h w"] | None = None
        self._sums = torch.zeros(len(self.scores) + 1, dtype=torch.float64)
        self._device = torch.device("cpu")

    @property
    def scores(self) -> tuple[str, ...]:
        return ("psnr", "ssim", "psnr_y", "ssim_y")

    def update(self, images: UInt8[Tensor, "b 3 h w"], captions: Sequence[str], *, real: bool) -> None:
        if real:
            self._real = images
            return
        assert self._real is not None, "the real images of a batch come first"
        self._device = images.device
        # On the CPU, since some devices have no float64.
        true, drawn = self._real.cpu().double(), images.cpu().double()
        pairs = [(drawn, true), (luma(drawn), luma(true))]
        each = [score(*pair) for pair in pairs for score in (psnr, ssim)]
        counted = [*(values.sum() for values in each), torch.tensor(float(len(images)))]
        self._sums += torch.stack([value.double().cpu() for value in counted])
        self._real = None

    def compute(self, key: str) -> dict[str, float]:
        # NCCL needs tensors on the device, and some devices have no float64.
        total = sum_over_processes(self._sums.float().to(self._device)).cpu()
        means = (total[:-1] / total[-1].clamp_min(1)).tolist()
        return dict(zip(self.scores, means, strict=True))

    def reset(self) -> None:
        self._sums.zero_()


def luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Brightness of RGB images, 0 to 255: Y of BT.601, 16 to 235."""
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True) + 16


def psnr(images: Float[Tensor, "b c h w"], true: Float[Tensor, "b c h w"]) -> PerImage:
    """Peak signal-to-noise ratio of each image, dB, for values of 0 to 255; at most 100 for equal ones."""
    error = (images - true).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error.clamp_min(1e-12))).clamp_max(100)


def ssim(images: Float[Tensor, "b c h w"], true: Float[Tensor, "b c h w"]) -> PerImage:
    """Structural similarity of each image of 11 px or more, at most 1, for values of 0 to 255.

    With the paper's settings (eq. 13): a Gaussian window of 11 px and 1.5 px deviation, K 0.01 and 0.03. The
    mean is over the windows that lie wholly inside the image. torchmetrics has the same, but its window of
    two dimensions takes ten times as long and 120 times the memory in float64.
    """
    x, y = (each.double().flatten(0, 1)[:, None] for each in (images, true))
    places = torch.arange(_WINDOW, dtype=torch.float64, device=x.device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (places / 1.5).square())
    weights = weights / weights.sum()

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, weights[None, None, :, None]), weights[None, None, None, :])

    mx, my = mean(x), mean(y)
    # In float64, since these are differences of large numbers; autocast leaves it alone.
    vx, vy, covariance = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean((1, 2, 3)).unflatten(0, images.shape[:2]).mean(1)
