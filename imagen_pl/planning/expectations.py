"""The expectations and warnings that `imagen-pl plan` prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from imagen_pl.planning import rules
from imagen_pl.planning.planner import Plan

_FEW_PASSES = 1.0
_FEW_KIMG = 10.0  # two minutes of the quickstart: blurred shapes


def lines(plan: Plan) -> Iterator[str]:
    """What to expect from the run: networks, images, speed, memory and the time of each stage."""
    design, speed = plan.design, plan.speed
    maps = ", ".join(
        map(str, rules.channels(design.base, design.resolution, rules.channel_cap(design.base)).values())
    )
    kind = "adversarial training only" if design.long_run else "a short run"
    yield (
        f"Plan: {design.resolution} px, {maps} channels from 4 px on, batches of {plan.batch_size}; {kind}, "
        f"{_losses(plan)}"
    )
    memory = "" if speed.memory_gb is None else f", {speed.memory_gb:.1f} GB of memory"
    yield (
        f"Expect: {design.kimg * 1000:,.0f} images in {duration(plan.budget.hours)} at "
        f"{speed.images_per_second:.3g} images/s, {plan.passes:,.1f} passes over the data{memory}"
    )
    stages = plan.hours_by_stage()
    if len(stages) > 1:
        whole = sum(hours for _, hours in stages)
        for stage, hours in stages:
            fade = f", {_kimg(stage.fade_kimg)} of them fading in" if stage.fade_kimg else ""
            yield (
                f"  {stage.resolution:>4} px  {duration(hours):>8}  {hours / whole:4.0%}  "
                f"{_kimg(stage.kimg)} images{fade}"
            )


def warnings(plan: Plan) -> Iterator[str]:
    """What is too small for good results, and what to do."""
    data, design = plan.data, plan.design
    if data.images < rules.FEW_IMAGES:
        yield (
            f"{data.images:,} images are few: the networks will memorise them. More images give more "
            "varied samples; configs/experiment/finetune.yaml starts from the shipped model instead of "
            "random weights"
        )
    if plan.passes < _FEW_PASSES:
        yield (
            f"the run sees {plan.passes:.0%} of the data: give more --hours, or expect only its most common "
            "subjects"
        )
    if design.kimg < _FEW_KIMG:
        yield (
            f"{design.kimg * 1000:,.0f} images give blobs: the quickstart shows clear shapes after about "
            f"12,000; give {duration(plan.budget.hours * 12 / max(design.kimg, 1e-3))} or more"
        )
    elif design.kimg < 0.5 * plan.enough_kimg and plan.passes >= _FEW_PASSES:
        share = design.kimg / plan.enough_kimg
        yield (
            f"the time is short: the run sees {share:.0%} of the {plan.enough_kimg:,.0f} thousand images "
            "that these networks need, and they are already the narrowest worth training"
        )
    if data.side < design.resolution:
        yield (
            f"half of the images have a side of {data.side} px or less, and are enlarged to "
            f"{design.resolution}"
        )
    total = _machine_gb()
    if (
        plan.speed.memory_gb is not None
        and not plan.budget.gpus
        and total
        and plan.speed.memory_gb > 0.8 * total
    ):
        yield (
            f"{plan.speed.memory_gb:.1f} GB of this machine's {total:.0f} GB of memory are used: close "
            "other programs"
        )
    if not data.validates:
        yield "there are too few images to hold some out, so there will be no validation scores"


def _losses(plan: Plan) -> str:
    if plan.paired:
        return "with losses that compare samples with the real images of their captions"
    if plan.data.shared > rules.MOST_SHARED:
        return f"no paired losses, since {plan.data.shared:.0%} of the images share their captions"
    return "no paired losses"


def _kimg(kimg: float) -> str:
    return f"{kimg * 1000:,.0f}"


def duration(hours: float) -> str:
    """As 40 s, 8 min, 7.5 h or 3.2 days."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 2:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _machine_gb() -> float:
    """This machine's memory, GiB; 0 if unknown."""
    if sys.platform == "win32":
        return 0.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
