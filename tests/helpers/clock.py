"""A clock that moves only as a test says."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from imagen_pl.lightning_module import TextToImageGAN
from tests.helpers.training import AtEachBatch


class FakeClock:
    """Stands in for the module `time` in one of ours; the callback `tick` moves it before each batch.

    Args:
        monkeypatch: of the test.
        module: whose `time` it replaces.
        batch_s: how long a batch takes, seconds.
        now: the time at first.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        module: ModuleType,
        batch_s: Callable[[TextToImageGAN], float],
        now: float = 0.0,
    ) -> None:
        self.now, self.batch_s = now, batch_s
        monkeypatch.setattr(module, "time", self)
        self.tick = AtEachBatch(before=self._tick)

    def monotonic(self) -> float:
        return self.now

    def _tick(self, gan: TextToImageGAN, batch: Any) -> None:
        self.now += self.batch_s(gan)
