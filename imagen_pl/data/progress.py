"""The progress bar of everything in this package that takes time outside of Lightning's own loops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_SHOW_AFTER_S = 2.0
# In a log file a bar is a line each time: few are enough.
_LOG_EVERY_S = 10.0


def progress_bar(
    description: str | None = None,
    total: int | None = None,
    unit: str = " images",
    initial: int = 0,
    shown: bool = True,
) -> tqdm[Any]:
    """A bar on stderr that appears after two seconds and disappears when it is closed.

    Args:
        description: what is being done, for example "encoding captions".
        total: how many units there are, for the time left; None if unknown.
        unit: of the count, with a space before it.
        initial: units that an earlier run has done.
        shown: False shows nothing, for all processes but the first.
    """
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        initial=initial,
        disable=not shown,
        delay=_SHOW_AFTER_S,
        mininterval=0.2 if sys.stderr.isatty() else _LOG_EVERY_S,
        file=sys.stderr,
        leave=False,
    )


def print_above_bars(line: str) -> None:
    """Print a line to stderr, above the bars of a terminal; a log file has nothing to redraw."""
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


def with_progress(
    items: Iterable[T],
    description: str | None = None,
    total: int | None = None,
    unit: str = " images",
    size: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """Yield the items while a `progress_bar` counts them.

    Args:
        items: any iterable.
        description: as of `progress_bar`.
        total: units in all; None takes the length of the items if they have one and count one unit each.
        unit: as of `progress_bar`.
        size: units of one item, for example `len` of a batch; None counts one.
    """
    if total is None and size is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update(1 if size is None else size(item))
