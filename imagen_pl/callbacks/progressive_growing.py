"""Progressive growing (arXiv:1710.10196): small images first, then larger ones; new blocks are faded in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from imagen_pl.callbacks.base import gan_of
from imagen_pl.errors import UserError
from imagen_pl.schedules import (
    RunShare,
    Stage,
    StagePosition,
    by_share,
    check_stages,
    plan_stages,
    position,
)


class ProgressiveGrowing(Callback):
    """Sets the resolution, the fade and the batch size by a list of stages.

    The current stage and fade are a pure function of `images_seen`, so a run can resume in the middle of a
    fade.

    Args:
        stages: from the smallest resolution to the largest; the last continues until training ends.
        kimg_scale: multiplies every stage's `kimg` and `fade_kimg`: 0.25 goes through the same
            stages in a quarter of the images.
        reset_optimizer_state: true drops the optimizer state of the newest blocks when their fade ends, since
            it was collected while the blocks had only part of their weight; "all" drops that of both
            networks when a fade begins and when it ends, as ProGAN's code does (arXiv:1710.10196).

    Attributes:
        stages: the stages with their lengths in images. If they are given as shares of the run, RunLength
            plans the lengths during the run, and never changes batches that the loader has already planned.
    """

    def __init__(
        self,
        stages: list[Stage],
        kimg_scale: float = 1.0,
        reset_optimizer_state: bool | Literal["all"] = False,
    ) -> None:
        if kimg_scale <= 0:
            raise UserError(f"kimg_scale {kimg_scale} must be more than 0")
        try:
            check_stages(stages)
        except ValueError as error:
            raise UserError(f"ProgressiveGrowing: {error}") from None
        self._given = list(stages)
        self._begins: list[int] = []
        self.by_share = by_share(stages)
        if self.by_share:
            if kimg_scale != 1:
                raise UserError("growth.kimg_scale scales stages given in kimg, not shares of the run")
            self.stages, self._begins = plan_stages(self._given, RunShare(), [], 0)
        else:
            self.stages = [
                replace(s, kimg=(s.kimg or 0) * kimg_scale, fade_kimg=s.fade_kimg * kimg_scale)
                for s in stages
            ]
        self.reset_optimizer_state = reset_optimizer_state
        self._previous: StagePosition | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        gan = gan_of(pl_module)
        for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
            for i, planned in enumerate(self.stages):
                if planned.resolution not in network.resolutions:
                    add = f"add it to model.{name}.init_args.channels"
                    if len(network.resolutions) == 1:
                        add = f"give one stage, of {network.resolutions[0]} px"
                    raise UserError(
                        f"stages[{i}].resolution {planned.resolution} is not a resolution of the {name}: "
                        f"{list(network.resolutions)}; {add}"
                    )
                if planned.batch_size % (trainer.world_size * gan.accumulate):
                    raise UserError(
                        f"stages[{i}].batch_size {planned.batch_size} is not divisible by "
                        f"{trainer.world_size} processes x {gan.accumulate} accumulated parts"
                    )
        gan.run_state.stages = self.stages

    def plan(self, run: RunShare, settled: int) -> None:
        """Set the lengths in images of stages given as shares of the run; stages given in kimg do not change.

        Args:
            run: share of the run that is done, by the clock.
            settled: batches up to this clock are already planned and keep their stage.
        """
        if self.by_share:
            # In place: the loader's sampler reads this list before each batch that it plans.
            self.stages[:], self._begins = plan_stages(self._given, run, self._begins, settled)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gan = gan_of(pl_module)
        gan.run_state.set_position(position(self.stages, gan.images_seen))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        gan = gan_of(pl_module)
        now = position(self.stages, gan.images_seen)
        if self._previous is not None:
            ends = _ends_a_fade(self._previous, now)
            if self.reset_optimizer_state == "all" and (ends or _begins_a_fade(self._previous, now)):
                gan.reset_optimizer_state(None)
            elif self.reset_optimizer_state is True and ends:
                gan.reset_optimizer_state(self._previous.stage.resolution)
        gan.run_state.set_position(now)
        self._previous = now

    def state_dict(self) -> dict[str, Any]:
        """The planned stages, if given as shares, and the last batch's fade, to detect its end on resume."""
        state: dict[str, Any] = {}
        if self.by_share:
            state |= {"begins": self._begins, "lengths": [[s.kimg, s.fade_kimg] for s in self.stages]}
        if self._previous is not None:
            state |= {"index": self._previous.index, "fade": self._previous.growth.fade}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.by_share and len(state_dict.get("begins", [])) == len(self.stages):
            self._begins = list(state_dict["begins"])
            self.stages[:] = [
                replace(stage, kimg=kimg, fade_kimg=fade_kimg)
                for stage, (kimg, fade_kimg) in zip(self.stages, state_dict["lengths"], strict=True)
            ]
        if state_dict.get("index", len(self.stages)) < len(self.stages):
            stage = self.stages[state_dict["index"]]
            here = position([stage], 0)
            growth = replace(here.growth, fade=state_dict["fade"])
            self._previous = StagePosition(state_dict["index"], stage, growth)


def _ends_a_fade(previous: StagePosition, now: StagePosition) -> bool:
    """Whether a fade ended between two batches; a fade as long as its stage ends with the stage."""
    return previous.growth.fade < 1 and (now.growth.fade >= 1 or now.index != previous.index)


def _begins_a_fade(previous: StagePosition, now: StagePosition) -> bool:
    return now.growth.fade < 1 and now.index != previous.index
