"""How well an upsampler enlarges held-out icons and emoji, beside bicubic, Lanczos, Real-ESRGAN and waifu2x.

    imagen-pl data icons --size 64 --sets tabler ph twemoji noto --out icons64/
    imagen-pl data icons --size 256 --sets tabler ph twemoji noto --out icons256/
    python -m benchmarks.upsampler runs/upsampler --small icons64/ --large icons256/ \
        --peers PYTHON --out benchmarks/results/upsampler.json

The pictures are vectors of the test split, whose subjects the upsampler has not seen, drawn at 64 and at 256
px. PYTHON belongs to an environment with the peers (benchmarks/baselines/ncnn_upscalers.py). Prints a
Markdown table for icons and one for emoji, and writes them as JSON, with a grid of pictures beside it.

- PSNR, SSIM: of RGB, and of brightness (Y of BT.601), to the picture drawn at 256 px.
- Distance: LPIPS without learnt weights, in the features of EfficientNet-Lite1; training used Lite0's.
- FD: Frechet distance in features of EfficientNet-Lite1, to the pictures drawn at 256 px. With so few
  pictures it is too large; compare rows only.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from benchmarks.icons import markdown
from benchmarks.machine import command_line, machine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.sources.icons import IconRow, IconSource
from imagen_pl.imaging.grids import labelled_grid
from imagen_pl.inference.projection import perceptual_distance
from imagen_pl.inference.upscaling import load_upscaler
from imagen_pl.metrics.distances import frechet_distance
from imagen_pl.metrics.extractors import EfficientNetLite1
from imagen_pl.metrics.fidelity import luma, psnr, ssim
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.storage.atomic_files import atomic_write

PEERS = Path(__file__).parent / "baselines/ncnn_upscalers.py"
OURS = "Upsampler"
SHOWN = 8  # pictures of each kind in the grid
_BATCH = 20


@dataclass(frozen=True)
class Pair:
    """One vector drawn at two sizes."""

    caption: str
    small: Image.Image
    large: Image.Image


@dataclass(frozen=True)
class UpscalingScore:
    """One row of a table."""

    pictures: str
    method: str
    psnr: float
    ssim: float
    psnr_y: float
    ssim_y: float
    distance: float
    frechet: float
    seconds: float


def drawn_at_both_sizes(small: Path, large: Path, coloured: bool, number: int, seed: int) -> list[Pair]:
    """Vectors of test subjects that both folders have, chosen at random.

    Args:
        small: folder of small icons.
        large: folder of large ones.
        coloured: emoji and other coloured sets, or else icons of one colour.
        number: how many.
        seed: of the choice.
    """
    sides = [IconSource(str(folder)).icon_rows() for folder in (small, large)]
    learnt = {row.words for row in sides[0] if row.split == "train"}

    def wanted(row: IconRow) -> bool:
        return row.split == "test" and row.words not in learnt and ("coloured" in row.kind) is coloured

    of_small, of_large = (_by_name([row for row in side if wanted(row)]) for side in sides)
    both = [(of_small[name], row) for name, row in of_large.items() if name in of_small]
    order = np.random.default_rng(seed).permutation(len(both))[:number]
    return [Pair(both[i][1].full_caption, _opened(both[i][0]), _opened(both[i][1])) for i in order]


def _by_name(rows: list[IconRow]) -> dict[tuple[str, str, str], IconRow]:
    """Icons by set, kind and caption; those that share all three are left out."""
    names = [(row.set, row.kind, row.full_caption) for row in rows]
    counts = Counter(names)
    return {name: row for name, row in zip(names, rows, strict=True) if counts[name] == 1}


def _opened(row: IconRow) -> Image.Image:
    return Image.open(io.BytesIO(row.image)).convert("RGB")


def enlarged(
    pairs: list[Pair], model: Path, peers: Path | None
) -> Iterator[tuple[str, list[Image.Image], float]]:
    """Each method's name, pictures, and seconds a picture."""
    size = pairs[0].large.size
    for name, how in (("bicubic", Image.Resampling.BICUBIC), ("Lanczos", Image.Resampling.LANCZOS)):
        begun = time.perf_counter()
        pictures = [pair.small.resize(size, how) for pair in pairs]
        yield name, pictures, (time.perf_counter() - begun) / len(pairs)
    if peers is not None:
        with tempfile.TemporaryDirectory() as folder:
            small, large = Path(folder, "small"), Path(folder, "large")
            small.mkdir()
            for i, pair in enumerate(pairs):
                pair.small.save(small / f"{i:04}.png")
            subprocess.run([str(peers), str(PEERS), str(small), str(large)], check=True)
            for name, seconds in json.loads((large / "seconds.json").read_text()).items():
                files = sorted((large / name).glob("*.png"))
                yield name, [Image.open(file).convert("RGB") for file in files], seconds
    upscaler = load_upscaler(model, "cpu")
    upscaler.upscale(pairs[0].small)  # the first call is slower
    for name, with_caption in ((f"{OURS}, without caption", False), (OURS, True)):
        begun = time.perf_counter()
        pictures = [upscaler.upscale(pair.small, pair.caption if with_caption else "") for pair in pairs]
        yield name, pictures, (time.perf_counter() - begun) / len(pairs)


def score(
    kind: str, name: str, pictures: list[Image.Image], true: UInt8[Tensor, "n 3 h w"], seconds: float
) -> UpscalingScore:
    """A row of the table."""
    drawn = _stacked(pictures)
    a, b = drawn.double(), true.double()
    judge = TimmBackbone("efficientnet_lite1", true.shape[-1], maps=[0, 1, 2, 3, 4])
    extractor = EfficientNetLite1()
    extractor.load()
    distances: list[Tensor] = []
    features: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for part in range(0, len(drawn), _BATCH):
            rows = slice(part, part + _BATCH)
            x, y = (images[rows].float() / 127.5 - 1 for images in (drawn, true))
            distances.append(perceptual_distance(judge, x, y))
            features.append((extractor(drawn[rows]), extractor(true[rows])))
    own, real = (torch.cat(parts) for parts in zip(*features, strict=True))
    ya, yb = luma(a), luma(b)
    return UpscalingScore(
        kind,
        name,
        psnr=float(psnr(a, b).mean()),
        ssim=float(ssim(a, b).mean()),
        psnr_y=float(psnr(ya, yb).mean()),
        ssim_y=float(ssim(ya, yb).mean()),
        distance=float(torch.cat(distances).mean()),
        frechet=frechet_distance(real, own),
        seconds=seconds,
    )


def _stacked(pictures: list[Image.Image]) -> UInt8[Tensor, "n 3 h w"]:
    return torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in pictures])


def table(scores: list[UpscalingScore]) -> str:
    head = ["pictures", "method", "PSNR", "SSIM", "PSNR Y", "SSIM Y", "distance", "FD", "seconds"]
    rows = [
        [s.pictures, s.method, f"{s.psnr:.2f}", f"{s.ssim:.4f}", f"{s.psnr_y:.2f}", f"{s.ssim_y:.4f}",
         f"{s.distance:.3f}", f"{s.frechet:.1f}", f"{s.seconds:.3f}"]
        for s in scores
    ]  # fmt: skip
    return markdown(head, rows)


def run(options: argparse.Namespace) -> None:
    scores, shown, labels = [], [], []
    for kind, coloured in (("icons", False), ("emoji", True)):
        pairs = drawn_at_both_sizes(options.small, options.large, coloured, options.pictures, options.seed)
        true = _stacked([pair.large for pair in pairs])
        shown += [pair.small.resize(pair.large.size, Image.Resampling.NEAREST) for pair in pairs[:SHOWN]]
        labels += [f"given: {pair.caption}" for pair in pairs[:SHOWN]]
        for name, pictures, seconds in enlarged(pairs, options.model, options.peers):
            scores.append(score(kind, name, pictures, true, seconds))
            print(table(scores[-1:]).splitlines()[-1], flush=True)
            shown += pictures[:SHOWN]
            labels += [name] * len(pairs[:SHOWN])
        shown += [pair.large for pair in pairs[:SHOWN]]
        labels += ["drawn at 256 px"] * len(pairs[:SHOWN])
    print(table(scores))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(shown, labels, columns=SHOWN, min_width=128).save(options.out.with_suffix(".png"))
    about: dict[str, Any] = {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "pictures": options.pictures,
        "seed": options.seed,
        "scores": [asdict(each) for each in scores],
    }
    with atomic_write(options.out) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run, a checkpoint or a release of an upsampler")
    parser.add_argument("--small", type=Path, required=True, help="icons of 64 px, from imagen-pl data icons")
    parser.add_argument("--large", type=Path, required=True, help="the same at 256 px")
    parser.add_argument("--peers", type=Path, help="python of the peers' environment; left out without it")
    parser.add_argument("--pictures", type=int, default=100, help="of each kind; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="which pictures")
    parser.add_argument("--out", type=Path, default=Path("upsampler.json"), help="default: %(default)s")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
