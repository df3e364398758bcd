"""Counts images that cannot be used, and summarises them in one line."""

from __future__ import annotations

from collections.abc import Callable

_SHOWN = 3


class SkippedImages:
    """Images that were left out, by reason.

    Args:
        on_first: called with the reason and the name of the first image of each reason; for streams, which
            never end.
        count_once: count an image once for each reason, however often it is added; for streams, which are
            read in several passes.
    """

    def __init__(self, on_first: Callable[[str, str], None] | None = None, count_once: bool = False) -> None:
        self.on_first = on_first
        self.count_once = count_once
        self._counted: set[int] = set()
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one image. `reason` completes the words "3 ": "unreadable", "with an empty caption"."""
        if self.count_once:
            key = hash((reason, name))
            if key in self._counted:
                return
            self._counted.add(key)
        if self.on_first is not None and reason not in self._counts:
            self.on_first(reason, name)
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < _SHOWN:
            names.append(name)

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def total(self) -> int:
        return sum(self._counts.values())

    def summary(self) -> str:
        """As "9 with an empty caption (d.jpg, e.jpg, f.jpg, ...), 3 unreadable (a.jpg, b.jpg, c.jpg)"."""
        parts = []
        for reason, count in sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0])):
            names = ", ".join(self._names[reason]) + (", ..." if count > _SHOWN else "")
            parts.append(f"{count} {reason} ({names})")
        return ", ".join(parts)


class NewlySkipped(SkippedImages):
    """Also lists new entries, so that data loader workers can report them to the main process."""

    def __init__(self, on_first: Callable[[str, str], None] | None = None) -> None:
        super().__init__(on_first, count_once=True)
        self._new: list[tuple[str, str]] = []

    def add(self, reason: str, name: str) -> None:
        before = self.total()
        super().add(reason, name)
        if self.total() > before:
            self._new.append((reason, name))

    def take_new(self) -> list[tuple[str, str]]:
        """Reason and name of every image added since the last call."""
        new, self._new = self._new, []
        return new
