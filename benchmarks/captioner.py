"""Score captioners on the shipped emoji, beside the caption of the nearest training image.

    python -m benchmarks.captioner runs/captioner
    python -m benchmarks.captioner runs/captioner runs/quickstart --split test --out captions.json

Prints a Markdown table, and writes the same as JSON with the command, commit and machine. Each model reads
300 pictures of held-out subjects: one of a subject and style (the plain skin tone), the styles alike.

Cross-entropy is in nats a token, in brackets where each looks at another image. BLEU-4, ROUGE-L and CIDEr
compare the likeliest caption with the true one, in lower case, punctuation apart. Retrieval ranks the true
caption among 99 others of its style by cross-entropy; in brackets, looking at another image of that style.

The floor takes the caption of the training image that is nearest in EfficientNet-Lite0's features at 224 px;
that network is also what a captioner sees by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from benchmarks.caption_metrics import CaptionScores, caption_retrieval, score_captions
from benchmarks.machine import command_line, cpu_model
from benchmarks.protocol import cached, extract, make_reference, shrink
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.build_emoji import SHIPPED, STYLES
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.inference.captioning import CaptioningPipeline, load_captioner
from imagen_pl.inference.retrieval_captioning import RetrievalCaptioner, load_any_captioner
from imagen_pl.metrics.extractors import EfficientNetLite0
from imagen_pl.metrics.retrieval import Retrieval
from imagen_pl.storage.atomic_files import atomic_write

SIZE = 64
_BATCH = 50


@dataclass(frozen=True)
class HeldOut:
    """The held-out pictures: one skin tone a subject and style."""

    captions: list[str]
    subjects: list[str]
    styles: list[str]
    images: UInt8[Tensor, "n 3 h w"]


@dataclass(frozen=True)
class Score:
    """One row of the table. None where a score does not apply."""

    name: str
    resolution: int
    captions: CaptionScores
    nats: float | None = None
    nats_shuffled: float | None = None
    retrieval: Retrieval | None = None
    shuffled: Retrieval | None = None


def read_held_out(split: str, count: int, seed: int) -> HeldOut:
    """The plain one, which comes first, of subjects and styles drawn from a split, the styles alike."""
    from pyarrow import parquet

    table = parquet.read_table(SHIPPED)
    first: dict[tuple[str, str], int] = {}
    rows = table.drop_columns(["image"]).to_pylist()
    for place, row in enumerate(rows):
        if row["split"] == split:
            first.setdefault((row["subject"], row["style"]), place)
    draw, places = np.random.default_rng(seed), []
    for style in STYLES:
        held = [place for (_, theirs), place in first.items() if theirs == style]
        places += sorted(draw.permutation(held)[: count // len(STYLES)].tolist())
    images = [decode(table["image"][place]["bytes"].as_py(), SIZE) for place in places]
    return HeldOut(
        [rows[place]["caption"] for place in places],
        [rows[place]["subject"] for place in places],
        [rows[place]["style"] for place in places],
        torch.stack(images),
    )


def score_model(pipeline: CaptioningPipeline, held_out: HeldOut, name: str, seed: int) -> Score:
    """Captions, cross-entropy and retrieval of a captioner."""
    images = shrink(held_out.images, pipeline.resolution)
    memory = torch.cat([pipeline.extract_features(part) for part in images.split(_BATCH)])
    captioner = pipeline.captioner
    generated_captions = [caption for part in memory.split(_BATCH) for caption in captioner.caption(part)]
    # Styles stand together, so half a style away is another subject of mostly the same style.
    half = len(memory) // len(STYLES) // 2
    own, other = (mean_nats(pipeline, m, held_out.captions) for m in (memory, memory.roll(half, 0)))

    @torch.no_grad()
    def misfit(image: int, captions: Sequence[str]) -> Float[Tensor, " n"]:
        seen = memory[image : image + 1].expand(len(captions), -1, -1)
        return captioner.cross_entropy(seen, captions).cpu()

    found = []
    for shuffled in (False, True):
        rows = tqdm(held_out.captions, desc=f"retrieval by {name}", delay=2, leave=False, disable=None)

        def counted_misfit(image: int, captions: Sequence[str], rows: tqdm = rows) -> Float[Tensor, " n"]:
            rows.update()
            return misfit(image, captions)

        found.append(
            caption_retrieval(
                counted_misfit,
                held_out.captions,
                held_out.subjects,
                held_out.styles,
                seed=seed,
                shuffled=shuffled,
            )
        )
    scores = score_captions(generated_captions, [[caption] for caption in held_out.captions])
    return Score(name, pipeline.resolution, scores, own, other, *found)


@torch.no_grad()
def mean_nats(pipeline: CaptioningPipeline, memory: Float[Tensor, "n m d"], captions: list[str]) -> float:
    parts = [
        pipeline.captioner.cross_entropy(part, captions[start : start + len(part)])
        for start, part in zip(range(0, len(memory), _BATCH), memory.split(_BATCH), strict=True)
    ]
    return float(torch.cat(parts).mean())


def score_retrieval(captioner: RetrievalCaptioner, held_out: HeldOut, name: str) -> Score:
    """Captions of a captioner by retrieval, which knows no likelihood."""
    captions = captioner.caption_batch(shrink(held_out.images, captioner.resolution))
    scores = score_captions(captions, [[caption] for caption in held_out.captions])
    return Score(f"{name}, by retrieval", captioner.resolution, scores)


def score_nearest(held_out: HeldOut, resolution: int, split: str, seed: int) -> Score:
    """The floor: the caption of the nearest picture that training has shown."""
    extractor = EfficientNetLite0()
    reference = make_reference(extractor, resolution, seed)
    train = [row for row, picture in enumerate(reference.pictures) if picture.split == "train"]
    images = shrink(held_out.images, resolution)
    key = f"{extractor.name} captions {split} {resolution} {seed} {len(images)}"
    mine = cached(key, lambda: extract(extractor, images, "held-out images"))
    theirs = reference.features[train]
    mean = theirs.mean(0)
    a, b = (torch.nn.functional.normalize(x - mean, dim=1) for x in (mine, theirs))
    generated_captions = [reference.pictures[train[row]].caption for row in (a @ b.T).argmax(1).tolist()]
    scores = score_captions(generated_captions, [[caption] for caption in held_out.captions])
    return Score("nearest training image", resolution, scores)


def table(scores: list[Score]) -> str:
    found = "top-1 / top-5 / MRR (shuffled)"
    head = f"| | px | nats a token (shuffled) | BLEU-4 | ROUGE-L | CIDEr | exact | {found} |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for s in scores:
        c = s.captions
        nats = "" if s.nats is None else f"{s.nats:.2f} ({s.nats_shuffled:.2f})"
        found = " ".join(
            form.format(r.top1, r.top5, r.mrr)
            for r, form in (
                (s.retrieval, "{:.1%} / {:.1%} / {:.3f}"),
                (s.shuffled, "({:.1%} / {:.1%} / {:.3f})"),
            )
            if r is not None
        )
        numbers = f"{c.bleu4:.3f} | {c.rouge_l:.3f} | {c.cider:.2f} | {c.exact:.1%}"
        lines.append(f"| {s.name} | {s.resolution} | {nats} | {numbers} | {found} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="captioners' folders, runs or checkpoints")
    parser.add_argument(
        "--split", choices=["validation", "test"], default="validation", help="held-out subjects"
    )
    parser.add_argument("--images", type=int, default=300, help="how many pictures to read, at least 300")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and distractors")
    parser.add_argument("--out", type=Path, default=Path("captions.json"), help="the JSON file to write")
    options = parser.parse_args()
    try:
        run(options.models, options.split, options.images, options.seed, options.out)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def run(models: list[Path], split: str, count: int, seed: int, out: Path) -> None:
    start = time.monotonic()
    pipelines = [load_captioner(path, "cpu") for path in models]
    held_out = read_held_out(split, count, seed)
    scores = [score_model(d, held_out, str(path), seed) for d, path in zip(pipelines, models, strict=True)]
    by_retrieval = [(path, load_any_captioner(path, "cpu")) for path in models]
    scores += [
        score_retrieval(captioner, held_out, str(path))
        for path, captioner in by_retrieval
        if isinstance(captioner, RetrievalCaptioner)
    ]
    scores += [score_nearest(held_out, r, split, seed) for r in sorted({d.resolution for d in pipelines})]
    about = {
        "command": command_line(),
        "git": git_state(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "torch": torch.__version__,
        "data": SHIPPED.name,
        "split": split,
        "images": len(held_out.captions),
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(f"{len(held_out.captions)} pictures of the {split} split, seed {seed}\n")
    print(table(scores))
    with atomic_write(out) as file:
        file.write((json.dumps({**about, "scores": [asdict(s) for s in scores]}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
