"""Which blocks learn when: policies, pure functions of the clock and of the growth.

A policy keeps nothing, so a resumed run needs nothing to go on with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Block(NamedTuple):
    """A part of a network that learns or stands still as a whole.

    network: "generator" or "discriminator".
    name: its resolution, as "16", or "shared" for what belongs to no resolution.
    """

    network: str
    name: str

    def __str__(self) -> str:
        return f"{self.network}.{self.name}"

    @property
    def resolution(self) -> int | None:
        """The resolution that it adds, px; None for what the blocks share."""
        return int(self.name) if self.name.isdecimal() else None


@dataclass(frozen=True)
class ScheduleState:
    """When a policy is asked, and how far the networks have grown.

    images_seen: the clock.
    stage_began: the clock at which the stage of growth began.
    resolution: the stage's resolution, px.
    before: the resolution of the stage before it; None in the first stage.
    """

    images_seen: int
    stage_began: int
    resolution: int
    before: int | None


class BlockPolicy(ABC):
    """Decides which blocks learn."""

    # Whether the discriminator starts anew whenever the networks grow.
    fresh_discriminator: bool = False

    @abstractmethod
    def learners(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        """Those of the blocks that learn now.

        Args:
            blocks: those that run at the present growth, of both networks.
            now: the clock and the growth.
        """

    def names(self) -> Iterable[str]:
        """The blocks and networks that its settings name; each is looked for before training begins."""
        return ()

    @property
    def waits_for_growth(self) -> bool:
        """Whether it does nothing where there is one stage alone, which is told before training begins."""
        return False


class TrainAllBlocks(BlockPolicy):
    """Every block learns in every step."""

    def learners(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        return blocks


class FreezeOldBlocks(BlockPolicy):
    """After growth the stem stands still and new blocks learn (StyleGAN-XL, arXiv:2202.00273).

    The stem is the generator's mapping and every block of the stage before; the discriminator learns as a
    whole.

    Args:
        kimg: how long the stem stands still after each growth, in thousands of images; then all learn until
            the next. None keeps it still until the next growth, as StyleGAN-XL does.
        fresh_discriminator: at each growth the discriminator, and what the terms learn with it, starts anew
            from its first weights, as in StyleGAN-XL.
        stem_resolution: the blocks up to this resolution, px, come from another run (`init_from`) and are
            the stem from the first stage on. None lets all blocks learn in the first stage.
    """

    def __init__(
        self, kimg: float | None = None, fresh_discriminator: bool = False, stem_resolution: int | None = None
    ) -> None:
        if kimg is not None and kimg <= 0:
            raise ValueError(f"FreezeOldBlocks: kimg {kimg} must be more than 0")
        self.kimg, self.fresh_discriminator, self.stem_resolution = kimg, fresh_discriminator, stem_resolution

    def learners(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        stem = max(now.before or 0, self.stem_resolution or 0)
        over = self.kimg is not None and now.images_seen - now.stage_began >= round(self.kimg * 1000)
        if stem == 0 or over:
            return blocks
        return [b for b in blocks if b.network == "discriminator" or (b.resolution or 0) > stem]

    def names(self) -> Iterable[str]:
        return () if self.stem_resolution is None else [f"generator.{self.stem_resolution}"]

    @property
    def waits_for_growth(self) -> bool:
        return self.stem_resolution is None


class Alternate(BlockPolicy):
    """Groups of blocks take turns: one learns, the others stand still.

    A group none of whose blocks has grown yet is passed over.

    Args:
        kimg: length of a turn, in thousands of images. Make it many batches long: what comes at every nth
            batch, as a lazy penalty, should come in every turn.
        groups: in order; each a list of blocks, as "generator.16" or "generator.shared", or of whole
            networks, as "discriminator". None gives every block that runs a turn of its own, the generator's
            and the discriminator's by turns, from what they share to the finest.
    """

    def __init__(self, kimg: float, groups: list[list[str]] | None = None) -> None:
        if round(kimg * 1000) < 1:
            raise ValueError(f"Alternate: kimg {kimg} must be 0.001 or more")
        if groups is not None and not (groups and all(groups)):
            raise ValueError("Alternate: groups must name at least one block each; null takes every block")
        self.kimg, self.groups = kimg, groups

    def learners(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        groups = self._by_turns(blocks) if self.groups is None else self._named(blocks, self.groups)
        return groups[now.images_seen // round(self.kimg * 1000) % len(groups)] if groups else []

    @staticmethod
    def _by_turns(blocks: Sequence[Block]) -> list[list[Block]]:
        ordered = sorted(blocks, key=lambda b: (b.resolution or 0, b.network != "generator"))
        return [[block] for block in ordered]

    @staticmethod
    def _named(blocks: Sequence[Block], groups: list[list[str]]) -> list[list[Block]]:
        grown = [[b for b in blocks if {b.network, str(b)} & set(group)] for group in groups]
        return [group for group in grown if group]

    def names(self) -> Iterable[str]:
        return [name for group in self.groups or () for name in group]
