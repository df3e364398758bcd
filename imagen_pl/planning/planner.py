"""The search of `imagen-pl plan`: the resolution and the widths that fit the training time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from imagen_pl.errors import UserError
from imagen_pl.planning import rules
from imagen_pl.planning.data_profile import DataProfile

_MEASUREMENTS = 4  # at most so many designs are measured
_ALMOST_ENOUGH = 0.9  # of `enough_kimg`: a small measurement error does not make the networks narrower
# Share of a long run's time that is training; the rest is validation, samples and checkpoints.
_TRAINING_SHARE = 0.95


@dataclass(frozen=True)
class Budget:
    """Time and devices for training.

    hours: training time.
    gpus: GPUs on this machine; 0 trains on the CPU.
    resolution: side of the images at the end, px; None chooses it by the rules.
    """

    hours: float
    gpus: int = 0
    resolution: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.hours < 24 * 365:
            raise UserError(f"--hours {self.hours:g} must be more than 0 and less than a year")
        if self.gpus < 0:
            raise UserError(f"--gpus {self.gpus} must be 0 or more")
        if self.resolution is not None and self.resolution not in rules.RESOLUTIONS:
            raise UserError(
                f"--resolution {self.resolution} must be one of {', '.join(map(str, rules.RESOLUTIONS))}"
            )


@dataclass(frozen=True)
class Design:
    """The result of the search; all other settings follow from it by rules.

    resolution: side of the images at the end, px.
    base: channels at 1 px, see `rules.channels`.
    long_run: adversarial training only, see `rules.is_long_run`.
    kimg: thousands of images that the run sees.
    """

    resolution: int
    base: int
    long_run: bool
    kimg: float


@dataclass(frozen=True)
class Speed:
    """Speed of a design on this machine.

    images_per_second: of all devices together, at full size.
    by_resolution: the same at the resolution of each stage.
    memory_gb: peak memory of one device, or on the CPU of this process; None if it was not measured.
    """

    images_per_second: float
    by_resolution: dict[int, float]
    memory_gb: float | None = None


@dataclass(frozen=True)
class Plan:
    """A design with its speed and what follows from them.

    data: the data set.
    budget: time and devices.
    design: networks and length of the run.
    speed: speed of the design.
    enough_kimg: number of images that such networks need, thousands.
    passes: passes over the data.
    """

    data: DataProfile
    budget: Budget
    design: Design
    speed: Speed
    enough_kimg: float
    passes: float

    @property
    def stages(self) -> list[rules.StageLength]:
        return rules.stages(self.design.resolution, self.design.kimg, self.batch_size)

    @property
    def batch_size(self) -> int:
        return rules.batch_size(self.design.kimg, self.budget.gpus)

    @property
    def paired(self) -> bool:
        return not self.design.long_run and rules.pairs_fit(self.data.shared, self.passes)

    def hours_by_stage(self) -> list[tuple[rules.StageLength, float]]:
        """Each stage and its hours."""
        return [
            (stage, stage.kimg * 1000 / self.speed.by_resolution[stage.resolution] / 3600)
            for stage in self.stages
        ]

    def shares_of_time(self) -> list[float]:
        """Each stage's share of the training time, so that at the measured speeds it sees its images."""
        hours = [hours for _, hours in self.hours_by_stage()]
        return [each / sum(hours) for each in hours]


Measure = Callable[[Plan], Speed]


def make_plan(data: DataProfile, budget: Budget, measure: Measure) -> Plan:
    """Find the largest resolution, then the widest networks, that see enough images in the time.

    Args:
        data: the data set.
        budget: time and devices.
        measure: times the training steps of a plan; called four times at most.

    Raises:
        UserError: the images are smaller than half of the budget's resolution.
    """
    sizes = _resolutions(data, budget)
    search = _Search(data, budget, measure)
    smallest = sizes[0] if budget.resolution else min(sizes)
    first = search.design(smallest, rules.narrowest(smallest, False), False)
    long_run = rules.is_long_run(search.kimg(first, search.speed(first)))
    resolution = smallest
    for size in sizes:
        design = search.design(size, rules.narrowest(size, long_run), long_run)
        if search.estimated_kimg(design) >= search.enough(design):
            resolution = max(resolution, size)
    bases = [
        base
        for base in rules.BASES
        if rules.narrowest(resolution, long_run) <= base <= rules.widest(resolution)
    ] or [rules.narrowest(resolution, long_run)]
    chosen = search.design(resolution, bases[0], long_run)
    for base in bases[1:]:
        wider = search.design(resolution, base, long_run)
        if search.estimated_kimg(wider) >= search.enough(wider):
            chosen = wider
    return search.settle(chosen, bases)


def assume_speed(tflops: float) -> Measure:
    """Computes the speed from the number of operations, for GPUs that are not in this machine.

    Args:
        tflops: speed of one GPU in training, 10^12 operations per second.
    """

    def measure(plan: Plan) -> Speed:
        devices = max(plan.budget.gpus, 1)
        rates = {
            stage.resolution: devices * tflops * 1e12 / rules.operations(plan.design.base, stage.resolution)
            for stage in plan.stages
        }
        return Speed(rates[plan.design.resolution], rates)

    return measure


class _Search:
    """Measures designs, and estimates the speed of others from the measured one of the nearest cost."""

    def __init__(self, data: DataProfile, budget: Budget, measure: Measure) -> None:
        self.data, self.budget, self.measure = data, budget, measure
        self.measured: dict[tuple[int, int, bool], Speed] = {}

    def speed(self, design: Design) -> Speed:
        key = (design.resolution, design.base, design.long_run)
        if key not in self.measured:
            self.measured[key] = self.measure(self.plan(design, Speed(0.0, {})))
        return self.measured[key]

    def design(self, resolution: int, base: int, long_run: bool) -> Design:
        """A design that sees just enough images; the length is replaced once the speed is measured."""
        hours, images = self.budget.hours, self.data.images
        return Design(resolution, base, long_run, rules.enough_kimg(resolution, long_run, hours, images))

    def plan(self, design: Design, speed: Speed) -> Plan:
        passes = design.kimg * 1000 / self.data.images
        return Plan(self.data, self.budget, design, speed, self.enough(design), passes)

    def kimg(self, design: Design, speed: Speed) -> float:
        """Thousands of images that a design sees in the time, at its speeds by stage."""
        seconds = 3600 * self.budget.hours * (_TRAINING_SHARE if design.long_run else 1.0)
        whole = rules.stages(design.resolution, 100.0, 32)
        shares = [(stage.resolution, stage.kimg / sum(s.kimg for s in whole)) for stage in whole]
        each_s = sum(share / speed.by_resolution[resolution] for resolution, share in shares)
        return seconds / each_s / 1000

    def estimated_kimg(self, design: Design) -> float:
        """An estimate of `kimg` from the measured design of the nearest cost."""
        wanted = rules.cost(design.base, design.resolution)
        resolution, base, long_run = min(
            self.measured, key=lambda key: abs(rules.cost(key[1], key[0]) - wanted)
        )
        work = self.measured[resolution, base, long_run].images_per_second * rules.cost(base, resolution)
        sizes = {*(size for size in rules.RESOLUTIONS if size < design.resolution), design.resolution}
        rates = {size: work / rules.cost(design.base, size) for size in sizes}
        return self.kimg(design, Speed(rates[design.resolution], rates))

    def enough(self, design: Design) -> float:
        return rules.enough_kimg(design.resolution, design.long_run, self.budget.hours, self.data.images)

    def settle(self, design: Design, bases: list[int]) -> Plan:
        """Measure the design; if it is slower than estimated, take narrower networks."""
        while True:
            kimg = self.kimg(design, self.speed(design))
            narrower = [base for base in bases if base < design.base]
            is_enough = kimg >= _ALMOST_ENOUGH * self.enough(design)
            if is_enough or not narrower or len(self.measured) >= _MEASUREMENTS:
                break
            candidates = [self.design(design.resolution, base, design.long_run) for base in narrower]
            fitting = [one for one in candidates if self.estimated_kimg(one) >= self.enough(one)]
            design = (fitting or candidates[:1])[-1]
        return self.plan(replace(design, kimg=kimg), self.speed(design))


def _resolutions(data: DataProfile, budget: Budget) -> list[int]:
    """Resolutions to choose from, px, from small to large: up to the median size of the images."""
    if budget.resolution is not None:
        if data.side * 2 < budget.resolution:
            raise UserError(
                f"--resolution {budget.resolution}: half of the images in {data.path} have less than "
                f"{data.side} px, and training skips those under {budget.resolution // 2}: choose a smaller "
                "one"
            )
        return [budget.resolution]
    fitting = [size for size in rules.RESOLUTIONS if size <= data.side] or [rules.RESOLUTIONS[0]]
    return [size for size in fitting if size >= rules.SMALLEST_USUAL] or fitting[-1:]
