"""Policies that select which blocks are trained: pure functions of the clock and the growth.

A policy has no state, so a resumed run needs only the clock to continue with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Block(NamedTuple):
    """A part of a network that is trained or frozen as a whole.

    network: "generator" or "discriminator".
    name: its resolution, for example "16", or "shared" for the parameters outside the resolutions' blocks.
    """

    network: str
    name: str

    def __str__(self) -> str:
        return f"{self.network}.{self.name}"

    @property
    def resolution(self) -> int | None:
        """The resolution that the block adds, px; None for the shared parameters."""
        return int(self.name) if self.name.isdecimal() else None


@dataclass(frozen=True)
class ScheduleState:
    """What a policy depends on: the clock, and how far the networks have grown.

    images_seen: the clock.
    stage_began: the clock at which the growth stage began.
    resolution: the stage's resolution, px.
    before: the resolution of the stage before it; None in the first stage.
    """

    images_seen: int
    stage_began: int
    resolution: int
    before: int | None


class BlockPolicy(ABC):
    """Decides which blocks are trained."""

    # Whether the discriminator is reset to its initial weights at each growth.
    fresh_discriminator: bool = False

    @abstractmethod
    def blocks_to_train(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        """The blocks to train now.

        Args:
            blocks: the blocks of both networks that are active at the current growth.
            now: the clock and the growth.
        """

    def names(self) -> Iterable[str]:
        """Blocks and networks named in the settings; before training, each is checked to exist."""
        return ()

    @property
    def needs_growth(self) -> bool:
        """Whether it has no effect with a single growth stage; training with one stage is then refused."""
        return False


class TrainAllBlocks(BlockPolicy):
    """Trains every block in every step."""

    def blocks_to_train(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        return blocks


class FreezeOldBlocks(BlockPolicy):
    """After each growth, freezes the stem and trains the new blocks (StyleGAN-XL, arXiv:2202.00273).

    The stem is the generator's mapping network and all blocks of the stage before. The whole discriminator is
    trained.

    Args:
        kimg: how long the stem is frozen after each growth, in thousands of images; after that, all blocks
            are trained until the next growth. None keeps it frozen until then, as in StyleGAN-XL.
        fresh_discriminator: at each growth, reset the discriminator and the loss heads trained with it to
            their initial weights, as in StyleGAN-XL.
        stem_resolution: the blocks up to this resolution, px, come from another run (`init_from`) and are
            frozen from the first stage on. None trains all blocks in the first stage.
    """

    def __init__(
        self, kimg: float | None = None, fresh_discriminator: bool = False, stem_resolution: int | None = None
    ) -> None:
        if kimg is not None and kimg <= 0:
            raise ValueError(f"FreezeOldBlocks: kimg {kimg} must be more than 0")
        self.kimg, self.fresh_discriminator, self.stem_resolution = kimg, fresh_discriminator, stem_resolution

    def blocks_to_train(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        stem = max(now.before or 0, self.stem_resolution or 0)
        is_unfrozen = self.kimg is not None and now.images_seen - now.stage_began >= round(self.kimg * 1000)
        if stem == 0 or is_unfrozen:
            return blocks
        return [b for b in blocks if b.network == "discriminator" or (b.resolution or 0) > stem]

    def names(self) -> Iterable[str]:
        return () if self.stem_resolution is None else [f"generator.{self.stem_resolution}"]

    @property
    def needs_growth(self) -> bool:
        return self.stem_resolution is None


class Alternate(BlockPolicy):
    """Trains one group of blocks at a time, in turn; the other groups are frozen.

    Groups whose blocks have not grown yet are skipped.

    Args:
        kimg: length of a turn, in thousands of images. It should last many batches, so that
            losses computed every nth batch, such as a lazy penalty, occur in every turn.
        groups: in order; each is a list of blocks, for example "generator.16" or "generator.shared", or of
            whole networks, for example "discriminator". None trains every active block in its own turn, from
            the shared parameters to the finest resolution, alternating generator and discriminator.
    """

    def __init__(self, kimg: float, groups: list[list[str]] | None = None) -> None:
        if round(kimg * 1000) < 1:
            raise ValueError(f"Alternate: kimg {kimg} must be 0.001 or more")
        if groups is not None and not (groups and all(groups)):
            raise ValueError(
                "Alternate: each group must name at least one block; null makes every block a group"
            )
        self.kimg, self.groups = kimg, groups

    def blocks_to_train(self, blocks: Sequence[Block], now: ScheduleState) -> Iterable[Block]:
        groups = (
            self._one_block_each(blocks)
            if self.groups is None
            else self._blocks_of_groups(blocks, self.groups)
        )
        return groups[now.images_seen // round(self.kimg * 1000) % len(groups)] if groups else []

    @staticmethod
    def _one_block_each(blocks: Sequence[Block]) -> list[list[Block]]:
        ordered = sorted(blocks, key=lambda b: (b.resolution or 0, b.network != "generator"))
        return [[block] for block in ordered]

    @staticmethod
    def _blocks_of_groups(blocks: Sequence[Block], groups: list[list[str]]) -> list[list[Block]]:
        grown = [[b for b in blocks if {b.network, str(b)} & set(group)] for group in groups]
        return [group for group in grown if group]

    def names(self) -> Iterable[str]:
        return [name for group in self.groups or () for name in group]
