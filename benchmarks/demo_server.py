"""Starts `imagen-pl demo` as a user would, for measurements of the page."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener


@dataclass(frozen=True)
class ServedPage:
    """A page that is being served.

    url: its address.
    pid: process id of the command.
    opened_s: seconds from the start of the command until the page was there.
    """

    url: str
    pid: int
    opened_s: float


@contextmanager
def serve_demo(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[ServedPage]:
    """Run `imagen-pl demo` on the CPU, on a free port, until the block ends.

    Args:
        words: the model and further options.
        environment: of the process; None takes that of this one.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "imagen_pl.cli.main", "demo", *words, "--port", str(port)]
    command += ["--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        yield ServedPage(url, process.pid, _wait_for(url, process))
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], patience_s: float = 120) -> float:
    """Seconds until the page is there."""
    start = time.monotonic()
    while time.monotonic() - start < patience_s:
        if process.poll() is not None:
            raise SystemExit(f"imagen-pl demo ended with {process.returncode}")
        try:
            with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:  # past a proxy
                answer.read()
            return time.monotonic() - start
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit(f"{url} did not answer within {patience_s:.0f} s")
