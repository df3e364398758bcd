"""Distances between the sets of generated and real images: Fréchet distance and kernel distance.

Axes: n images, f features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from imagen_pl.errors import UserError
from imagen_pl.metrics.base import ImageMetric, Images
from imagen_pl.metrics.distances import FEW, frechet_distance_of_moments, kernel_distance
from imagen_pl.metrics.distributed import all_rows, process_count, sum_over_processes
from imagen_pl.metrics.extractors import EfficientNetLite0, Extractor
from imagen_pl.metrics.feature_cache import RealStatistics

log = logging.getLogger(__name__)


class FrechetDistance(ImageMetric):
    """Fréchet (arXiv:1706.08500, eq. 6) and kernel distance (arXiv:1801.01401) in a network's features.

    With Inception they are val/fid and val/kid, with others val/fd_NAME and val/kd_NAME. For both, lower is
    better. The Fréchet distance also falls with the number of images: compare at equal numbers only.
    Statistics of the real images are computed once and cached on disk.

    Args:
        extractor: network that computes the features; None takes EfficientNet-Lite0, which works offline.
        kernel_images: maximum number of real and of generated images for the unbiased kernel distance, the
            first ones, split evenly among the processes; its cost grows with the square. 0 skips it.
    """

    def __init__(self, extractor: Extractor | None = None, kernel_images: int = 5000) -> None:
        if kernel_images < 0 or kernel_images == 1:
            raise UserError(f"kernel_images {kernel_images} must be 0, or 2 or more")
        self.extractor = extractor if extractor is not None else EfficientNetLite0()
        self.kernel_images = kernel_images
        self._statistics = RealStatistics(self.extractor, str(kernel_images))
        self._kept: dict[bool, list[Float[Tensor, "n f"]]] = {True: [], False: []}
        self._real_key: str | None = None
        self._warned_of_few = False

    @property
    def scores(self) -> tuple[str, ...]:
        names = (self.extractor.frechet_name, self.extractor.kernel_name)
        return names if self.kernel_images else names[:1]

    def prepare(self, fid_weights: str | None = None) -> str | None:
        return self.extractor.prepare(fid_weights)

    def needs_real(self, key: str) -> bool:
        if key != self._real_key:
            self._forget_real()
            if self._statistics.read(key, self._load_real):
                self._real_key = key
            else:
                self._forget_real()  # a damaged file may have been loaded in part
        return key != self._real_key

    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        features = self.extractor(images)
        self._sums.to(images.device).update(features, real=real)
        left = -(-self.kernel_images // process_count()) - sum(map(len, self._kept[real]))
        if left > 0:
            self._kept[real].append(features[:left].cpu())

    def compute(self, key: str) -> dict[str, float]:
        if self._real_key != key:
            self._real_key = key
            if self._count("real") >= 2:  # otherwise none were given; the next validation may have them
                self._save_real(key)
        real, fake = (self._count(name) for name in ("real", "fake"))
        if min(real, fake) < 2:
            log.warning(
                "%s: %d real and %d generated images are too few to compare: hold out at least 2, better 500",
                self.extractor.frechet_name, real, fake,
            )  # fmt: skip
            return dict.fromkeys(self.scores, float("nan"))
        if min(real, fake) < FEW and not self._warned_of_few:
            self._warned_of_few = True
            rank_zero_only(log.warning)(
                "val/%s compares %d pictures with %d real images: with so few it is too large, even for a "
                "perfect model; compare runs at equal numbers only",
                self.extractor.frechet_name, fake, real,
            )  # fmt: skip
        found = {self.extractor.frechet_name: float(self._sums.compute())}
        if self.kernel_images:
            found[self.extractor.kernel_name] = kernel_distance(self._all_kept(True), self._all_kept(False))
        return found

    def reset(self) -> None:
        self._sums.reset()  # resets the sums of the generated images only
        self._kept[False] = []

    # ------------------------------------------------------------------ over all processes

    @cached_property
    def _sums(self) -> _Sums:
        # Created lazily: some extractors know their number of features only after loading.
        return _Sums(_Identity(self.extractor.dim), reset_real_features=False)

    def _count(self, which: str) -> int:
        return int(sum_over_processes(getattr(self._sums, f"{which}_features_num_samples")))

    def _all_kept(self, real: bool) -> Float[Tensor, "n f"]:
        own = torch.cat([torch.zeros(0, self.extractor.dim), *self._kept[real]])
        return all_rows(own, self._sums.device)

    # ------------------------------------------------------------------ statistics of real images

    def _forget_real(self) -> None:
        self._real_key = None
        self._kept[True] = []
        for name in _REAL:
            getattr(self._sums, name).zero_()

    def _load_real(self, cached: dict[str, Tensor]) -> None:
        for name in _REAL:
            getattr(self._sums, name).copy_(cached[name])
        self._kept[True] = [cached["features"]]

    def _save_real(self, key: str) -> None:
        features = self._all_kept(True)
        self._sums.sync()
        totals = {name: getattr(self._sums, name).cpu() for name in _REAL}
        self._statistics.write(key, {**totals, "features": features})
        if self._sums._is_synced:
            self._sums.unsync()


_REAL = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


class _Sums(FrechetInceptionDistance):
    """torchmetrics sums and synchronises over processes; only the last step is computed here, for speed."""

    def compute(self) -> Tensor:
        moments: list[Tensor] = []
        for which in ("real", "fake"):
            total, squares, count = (
                getattr(self, f"{which}_features_{name}") for name in ("sum", "cov_sum", "num_samples")
            )
            mean = total / count
            moments += [mean, (squares - count * mean.outer(mean)) / (count - 1)]
        return torch.tensor(frechet_distance_of_moments(*moments), dtype=torch.float64)


class _Identity(nn.Module):
    """Passes features through unchanged: they are extracted once for both distances."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        return features
