"""Whether the memory of `imagen-pl demo` grows with the requests that it answers.

    python -m benchmarks.demo_memory icons --requests 1000 --num_images 1

Starts the command as a user would and sends its page requests from new visitors, several at a time. Prints
the resident memory of the process and the size of the files that it keeps. Linux only. Needs gradio, which
brings its client.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.demo_server import serve_demo
from imagen_pl.storage.atomic_files import atomic_write

_WORDS = ("alarm", "bell", "camera", "cloud", "folder", "heart", "lock", "moon", "outline", "filled", "sun")


def requests(count: int, num_images: int, refine: int, mixed: bool) -> list[tuple[str, tuple[Any, ...]]]:
    """Names of the page's functions, and their arguments; prompts of 1 to 40 words.

    Args:
        count: number of requests.
        num_images: pictures a request; of mixed ones, the most.
        refine: refinement steps of each picture.
        mixed: let the number of pictures vary, and ask for edits and films too.
    """
    draw, made = random.Random(0), []

    def prompt() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(1, 40)))[:300]

    for seed in range(count):
        name = draw.choice(("draw", "draw", "draw", "edit", "interpolate")) if mixed else "draw"
        number = draw.randint(1, num_images) if mixed else num_images
        asked: tuple[Any, ...] = (prompt(), seed, 1.0, 1.0, number, refine)
        if name != "draw":
            asked = (prompt(), prompt(), seed, 1.0, 1.0, *([16] if name == "interpolate" else []))
        made.append((f"/{name}", asked))
    return made


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


def files_mb(folder: Path) -> float:
    """Size of all files below a folder, MB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as `imagen-pl demo` takes it")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4, help="requests at a time")
    parser.add_argument("--num_images", type=int, default=8, help="pictures a request")
    parser.add_argument("--refine", type=int, default=0, help="refinement steps of each picture")
    parser.add_argument("--mixed", action="store_true", help="1 to --num_images pictures, edits and films")
    parser.add_argument("--upscaler", help="as `imagen-pl demo` takes it")
    parser.add_argument("--every", type=int, default=50, help="requests between two lines")
    parser.add_argument("--out", type=Path, help="write the lines here as JSON too")
    options = parser.parse_args()
    words = [options.model, *(["--upscaler", options.upscaler] if options.upscaler else [])]
    asked = requests(options.requests, options.num_images, options.refine, options.mixed)
    report: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        # The page's files go where they can be counted.
        environment = {**os.environ, "TMPDIR": folder, "GRADIO_TEMP_DIR": f"{folder}/gradio"}
        with serve_demo(words, environment) as page:
            from gradio_client import Client

            clients = [Client(page.url, verbose=False, download_files=False) for _ in range(options.clients)]
            start = time.monotonic()

            def answer(client: Client, name: str, arguments: tuple[Any, ...]) -> None:
                client.reset_session()  # as another visitor
                client.predict(*arguments, api_name=name)

            with ThreadPoolExecutor(options.clients) as pool:
                for done in range(0, len(asked), options.clients):
                    part = asked[done : done + options.clients]
                    for job in [pool.submit(answer, *both) for both in _given(clients, part)]:
                        job.result()
                    number = done + len(part)
                    if done == 0 or number // options.every > done // options.every:
                        line = {
                            "requests": number,
                            "memory_mb": round(resident_mb(page.pid)),
                            "files_mb": round(files_mb(Path(folder)), 1),
                            "seconds": round(time.monotonic() - start, 1),
                        }
                        report.append(line)
                        print(json.dumps(line), flush=True)
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())


def _given(
    clients: list[Any], part: list[tuple[str, tuple[Any, ...]]]
) -> list[tuple[Any, str, tuple[Any, ...]]]:
    """Each request with a client of its own."""
    return [(client, *request) for client, request in zip(clients, part, strict=False)]


if __name__ == "__main__":
    main()
