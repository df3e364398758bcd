"""Runs the page's functions one after another, with memory that does not grow."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from imagen_pl.training.malloc import release_freed_memory


class Worker:
    """One thread for all requests.

    Gradio has a pool of threads, and the C library keeps freed memory for the thread that freed it. So the
    process grew with every thread that had drawn (benchmarks/RESULTS.md).
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "page")

    def run(self, work: Callable[..., Any], *given: Any) -> Any:
        """The result of `work(*given)`; what it raises is raised here."""
        # Gradio's progress bar finds its event by a context variable.
        context = contextvars.copy_context()
        return self._thread.submit(context.run, _run_and_release, work, *given).result()


def _run_and_release(work: Callable[..., Any], *given: Any) -> Any:
    try:
        return work(*given)
    finally:
        release_freed_memory()
