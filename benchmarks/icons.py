"""Score models trained on icons: how varied the pictures of a caption are, and whether they show it.

    python -m benchmarks.icons runs/icons --icons icons64
    python -m benchmarks.icons runs/a runs/b --icons icons64 --out icons.json

Prints a Markdown table and writes it as JSON with the command, commit and machine. Beside it, as PNG, is what
each model drew: eight seeds of eight captions.

- Diversity, latent share, precision, coverage: eight pictures of each of 60 captions that name a subject
  alone, such as "bell", against 16 real pictures of that caption (imagen_pl/metrics/caption_diversity.py).
  The row "real" draws other real pictures of the caption.
- FD: Fréchet distance of these 480 pictures to the 960 real ones.
- Subject: a picture is drawn for a caption with subject, set and kind. Its real picture is ranked, by
  nearness to the drawn one, with 99 real pictures of other subjects of the set, which is one of the eight
  largest: top-1 and top-5. `train`: captions that were learnt; `pairs`: subject and set were learnt, but not
  together; `subjects`: the subject was not learnt. The row "real" answers with the real picture of the same
  subject in another set.
- Set and kind: a judge (benchmarks/style_judge.py), fitted to other real pictures of the eight sets, says
  which set the queries' pictures are in, and whether they are outline, filled or duotone, where the caption
  says it. The row "real" is the share of the queries' own real pictures that it gets right; chance is the
  share of the most frequent answer.
- One word's difference: both icons of a pair such as "bell" and "bell off" are drawn
  (benchmarks/word_pairs.py). The share of pictures that are nearer to their own real picture than to the
  other one. Learnt pairs, and pairs with an icon that was held out. The row "real" answers with the real
  picture of the same name in another set, where there is one.
- Words by the judge (benchmarks/icon_judge.py), which knows real icons and names of every split: whether it
  finds the name of a query's picture among those of the 100 subjects, and whether a picture of a pair fits
  its own name better than the other one. "real": what it gets right about real pictures new to it.

Everything is at the size of the icons, or of the smallest model; the judge of words sees 64 px at most.

The splits are train, composition and validation; --final takes test instead of validation. Models that have
learnt from the features of --extractor are refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import imagen_pl
from benchmarks.icon_judge import FOLDER, IconJudge
from benchmarks.icon_judge import SIDE as JUDGE_SIDE
from benchmarks.icon_reference import CANDIDATES, PICTURES, REAL, Reference, make_reference
from benchmarks.icon_scores import IconScore, IconScorer, WordScorer
from benchmarks.machine import command_line, machine
from benchmarks.protocol import Images, cached, extract, shrink
from benchmarks.quality import EXTRACTORS, check_teachers
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.storage.atomic_files import atomic_write

PARTS = ("set", "kind")
ONE_AND_FIVE = f"{1 / CANDIDATES:.0%} / {5 / CANDIDATES:.0%}"


def draw_all(
    model: TextToImage, reference: Reference, resolution: int, guidance: float
) -> tuple[Images, dict[str, Images], Images]:
    """Eight pictures of each caption, one for each query, and one for each contrast."""

    def drawn(pairs: list[tuple[str, int]]) -> Images:
        pictures = [
            torch.from_numpy(np.array(picture)) for picture in model.draw(pairs, guidance=guidance, refine=0)
        ]
        return shrink(torch.stack(pictures).permute(0, 3, 1, 2), resolution)

    several = drawn([(caption, seed) for caption in reference.by_caption for seed in range(PICTURES)])
    answers = {
        name: drawn([(query.caption, 1000 + i) for i, query in enumerate(queries)])
        for name, queries in reference.queries.items()
        if queries
    }
    contrasted = drawn([(each.caption, 5000 + i) for i, each in enumerate(reference.contrasts)])
    return several, answers, contrasted


def table(scores: Sequence[IconScore], chance: dict[str, float]) -> str:
    """Diversity and control, after a row for chance.

    Args:
        chance: of sets and kinds.
    """
    groups = list(scores[0].subject)
    names = ["", "diversity", "latent share", "precision", "coverage", "FD"]
    names += [f"subject, {group}: top-1 / top-5" for group in groups] + ["set", "kind"]
    by_chance = [*[ONE_AND_FIVE] * len(groups), *(f"{chance[part]:.0%}" for part in PARTS)]
    rows = [["chance", *[""] * 5, *by_chance]]
    for s in scores:
        d = s.diversity
        cells = [
            s.name,
            f"{d.diversity:.2f} ± {d.diversity_error:.2f}",
            f"{d.latent_share:.2f}",
            f"{d.precision:.2f} ± {d.precision_error:.2f}",
            f"{d.coverage:.2f} ± {d.coverage_error:.2f}",
            f"{s.frechet:.1f}",
            *(f"{s.subject[group][0]:.0%} / {s.subject[group][1]:.0%}" for group in groups),
            *(of_number(getattr(s, part)) for part in PARTS),
        ]
        rows.append(cells)
    return markdown(names, rows)


def word_table(scores: Sequence[IconScore]) -> str:
    """One word's difference, after a row for chance."""
    groups = sorted({group for s in scores for group in s.words})
    rows = [["chance", *["50%"] * len(groups)]]
    rows += [[s.name, *(of_number(s.words.get(group)) for group in groups)] for s in scores]
    return markdown(["", *groups], rows)


def judge_table(scores: Sequence[IconScore], ceiling: dict[str, Any]) -> str:
    """What the judge of words says: names among 100, then pairs of names that differ in one word.

    Args:
        scores: of the models.
        ceiling: what the judge gets right about real pictures, of its judge.json.
    """
    groups, pairs = list(scores[-1].named), sorted(scores[-1].pair_accuracy)
    of_pairs = {pair: ceiling.get(pair.split(",")[0]) for pair in pairs}
    real = [f"{ceiling['top1']:.0%} / {ceiling['top5']:.0%}" for _ in groups]
    real += [of_number((c["right"], c["pictures"]) if c else None) for c in of_pairs.values()]
    rows = [["chance", *[ONE_AND_FIVE] * len(groups), *["50%"] * len(pairs)], ["real", *real]]
    for s in scores:
        cells = [f"{s.named[g][0]:.0%} / {s.named[g][1]:.0%}" for g in groups]
        rows.append([s.name, *cells, *(of_number(s.pair_accuracy[pair]) for pair in pairs)])
    return markdown(["", *(f"named, {group}: top-1 / top-5" for group in groups), *pairs], rows)


def of_number(share: tuple[float, int] | None) -> str:
    """A share with its standard error, and the number of pictures."""
    if share is None:
        return ""
    error = math.sqrt(share[0] * (1 - share[0]) / share[1])
    return f"{share[0]:.0%} ± {error:.0%} of {share[1]:,}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def sheet(reference: Reference, pictures: dict[str, Images]) -> Image.Image:
    """Eight captions, a row each: eight pictures by each model, side by side."""
    step = max(len(reference.by_caption) // 8, 1)
    shown = list(range(0, len(reference.by_caption), step))[:8]
    captions = list(reference.by_caption)
    cells, labels = [], []
    for row in shown:
        for name, drawn in pictures.items():
            cells += to_pil(drawn[row * PICTURES : (row + 1) * PICTURES])
            labels += [f"{captions[row]} ({name})", *[" "] * (PICTURES - 1)]
    return labelled_grid(cells, labels, columns=PICTURES * len(pictures))


def run(
    models: list[Path],
    icons: Path,
    out: Path,
    least: int,
    final: bool,
    extractor: Extractor,
    seed: int,
    guidance: float = 1.0,
) -> None:
    source = IconSource(str(icons), least_pictures=least)
    loaded = {path.name: imagen_pl.load(path, device="cpu") for path in models}
    for path, model in zip(models, loaded.values(), strict=True):
        check_teachers(path, model, extractor)
    icon_rows = source.icon_rows()
    side = Image.open(BytesIO(icon_rows[0].image)).width
    resolution = min([side, *(model.resolution for model in loaded.values())])
    reference = make_reference(icon_rows, "test" if final else "validation", seed)
    real_images = shrink(torch.stack([decode(row.image, side) for row in reference.rows]), resolution)
    digest = hashlib.sha256(b"".join(row.image for row in reference.rows)).hexdigest()
    key = f"{extractor.name} icons {resolution} {digest}"
    real = cached(key, lambda: extract(extractor, real_images, "real pictures"))
    scorer = IconScorer(reference, real)
    scores, shown = [scorer.score_real()], {}
    words = WordScorer(reference, IconJudge.load())
    judged = json.loads((FOLDER / "judge.json").read_text())["tests"]
    ceiling = judged["64 px" if resolution >= 64 else "32 px"]
    shown["real"] = torch.cat([real_images[places[REAL:]] for places in reference.by_caption.values()])
    for name, model in loaded.items():
        several, answers, contrasted = draw_all(model, reference, resolution, guidance)
        features = extract(extractor, several, name).unflatten(0, (-1, PICTURES))
        answered = {group: extract(extractor, images, name) for group, images in answers.items()}
        by_number = dict(enumerate(extract(extractor, contrasted, name)))
        score = scorer.score(name, features, answered, by_number)
        read = {group: shrink(images, min(resolution, JUDGE_SIDE)) for group, images in answers.items()}
        pairs = words.pair_accuracy(shrink(contrasted, min(resolution, JUDGE_SIDE)))
        scores.append(replace(score, named=words.named(read), pair_accuracy=pairs))
        shown[name] = several
    subjects = f"subjects with {least} pictures or more" if least > 1 else "all subjects"
    print(
        f"{extractor.name} features, {resolution} px, {len(reference.by_caption)} captions of {PICTURES} "
        f"pictures, {subjects}, seed {seed}\n"
    )
    chance = {part: scorer.chance(part) for part in PARTS}
    print(table(scores, chance))
    print("\nThe standard error of a top-1 or top-5 share is at most 5 points.")
    print(f"\nOne word's difference\n\n{word_table(scores)}")
    print(f"\nWords by the judge\n\n{judge_table(scores[1:], ceiling)}")
    about: dict[str, Any] = {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "extractor": extractor.name,
        "resolution": resolution,
        "least_pictures": least,
        "seed": seed,
        "guidance": guidance,
        "chance": chance,
        "scores": [asdict(each) for each in scores],
        "judge": judged,
    }
    with atomic_write(out) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())
    sheet(reference, shown).save(out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="runs, checkpoints or releases")
    parser.add_argument("--icons", type=Path, required=True, help="folder that `imagen-pl data icons` wrote")
    parser.add_argument("--out", type=Path, default=Path("icons.json"), help="the JSON file to write")
    parser.add_argument("--least_pictures", type=int, default=1, help="only subjects with so many pictures")
    parser.add_argument("--final", action="store_true", help="held-out subjects are those of test")
    parser.add_argument(
        "--extractor", choices=EXTRACTORS, default="efficientnet_lite1", help="whose features"
    )
    parser.add_argument("--seed", type=int, default=0, help="of captions and candidates")
    parser.add_argument("--guidance", type=float, default=1.0, help="of all pictures (default: 1, none)")
    o = parser.parse_args()
    try:
        run(
            o.models, o.icons, o.out, o.least_pictures, o.final, EXTRACTORS[o.extractor](), o.seed, o.guidance
        )
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
