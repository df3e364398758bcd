"""How soon `imagen-pl demo` opens, and how soon it answers.

    python -m benchmarks.demo_latency emoji

Starts the command as a user would, waits until the page is served, and asks it for pictures as its own button
does. Needs gradio, which brings its client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from benchmarks.demo_server import serve_demo
from imagen_pl.storage.atomic_files import atomic_write

PROMPTS = [
    "a cupcake, fluent style",
    "red heart, noto style",
    "crown, twemoji style",
    "a smiling yellow face, noto style",
]


def answers(url: str, num_images: int) -> list[float]:
    """Seconds from each prompt to its pictures on this side."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    found = []
    for prompt in PROMPTS:
        start = time.monotonic()
        pictures = client.predict(prompt, 0, 1.0, 1.0, num_images, api_name="/draw")
        found.append(time.monotonic() - start)
        assert len(pictures) == num_images
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as `imagen-pl demo` takes it")
    parser.add_argument("--out", type=Path, help="write the seconds here as JSON too")
    options = parser.parse_args()
    with serve_demo([options.model]) as page:
        report = {"model": options.model, "opens_s": page.opened_s}
        for num_images in (1, 8):
            first, *later = answers(page.url, num_images)
            report |= {f"first_{num_images}_s": first, f"later_{num_images}_s": statistics.median(later)}
    report = {name: round(value, 2) if isinstance(value, float) else value for name, value in report.items()}
    print(json.dumps(report))
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
