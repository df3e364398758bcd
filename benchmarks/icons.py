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
  largest: top-1 and top-5. `train`:
  captions that were learnt; `pairs`: subject and set were learnt, but not together; `subjects`: the subject
  was not learnt. Chance is 1% and 5%. The row "real" answers with the real picture of the same subject in
  another set.
- Set and kind: a judge (benchmarks/style_judge.py), fitted to other real pictures of the eight sets, says
  which set, and which kind such as "outline", the queries' pictures are in. The row "real" is the share of
  the queries' own real pictures that it gets right.
- One word's difference: both icons of a pair such as "bell" and "bell off" are drawn
  (benchmarks/word_pairs.py). The share of pictures that are nearer to their own real picture than to the
  other one; chance is 50%. Learnt pairs, and pairs with an icon that was held out. The row "real" answers
  with the real picture of the same name in another set, where there is one.

The splits are train, composition and validation; --final takes test instead of validation. Models that have
learnt from the features of --extractor are refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import imagen_pl
from benchmarks.machine import command_line, machine
from benchmarks.protocol import Images, cached, extract, shrink
from benchmarks.quality import EXTRACTORS, check_teachers
from benchmarks.style_judge import StyleJudge
from benchmarks.word_pairs import mine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.sources.icons import IconRow, IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.metrics.caption_diversity import CaptionDiversity, caption_diversity
from imagen_pl.metrics.distances import frechet_distance
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.storage.atomic_files import atomic_write

CAPTIONS, PICTURES, REAL = 60, 8, 16
QUERIES, CANDIDATES, SETS, POOL = 100, 100, 8, 130
WORD_PAIRS = 40  # of each category, learnt and held out


@dataclass(frozen=True)
class Query:
    """A caption to draw, its real picture, and 99 others of the same set; rows of `Reference.rows`."""

    caption: str
    own: int
    others: list[int]
    stand_in: int  # the same subject in another set


@dataclass(frozen=True)
class Contrast:
    """One icon of a pair whose names differ in one word; places in `Reference.rows`.

    group: the category, and whether the pair was learnt.
    stand_in: a picture of the same name in another set; None if there is none.
    """

    group: str
    caption: str
    own: int
    other: int
    stand_in: int | None


@dataclass(frozen=True)
class Reference:
    """What is asked of the models.

    rows: all real pictures that are compared.
    by_caption: for each caption, its real pictures: 16 to compare with, then 8 that answer for "real".
    queries: by name of the row group: train, pairs, subjects.
    judged_by: real pictures of the sets that the judges are fitted to; none of them is a query's own.
    contrasts: both icons of the pairs whose names differ in one word.
    """

    rows: list[IconRow]
    by_caption: dict[str, list[int]]
    queries: dict[str, list[Query]]
    judged_by: list[int]
    contrasts: list[Contrast]


@dataclass(frozen=True)
class IconScore:
    """One row of the tables.

    subject: (top-1, top-5) by the name of the queries.
    set, kind: (share that the judge gets right, number of pictures) over all queries.
    words: (share of pictures nearer to their own real picture, number of pictures) by group of contrasts.
    """

    name: str
    diversity: CaptionDiversity
    frechet: float
    subject: dict[str, tuple[float, float]]
    set: tuple[float, int]
    kind: tuple[float, int]
    words: dict[str, tuple[float, int]]


# ------------------------------------------------------------------ what is asked


def make_reference(rows: Sequence[IconRow], held_out: str, seed: int) -> Reference:
    draw = np.random.default_rng(seed)
    needed: dict[int, int] = {}  # place in `rows` -> place in the reference

    def use(place: int) -> int:
        return needed.setdefault(place, len(needed))

    of_subject: defaultdict[str, list[int]] = defaultdict(list)
    of_set: defaultdict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        of_subject[row.words].append(i)
        of_set[row.set].append(i)
    common = [
        words
        for words, held in of_subject.items()
        if sum(rows[i].split == "train" for i in held) >= REAL + PICTURES
    ]
    if len(common) < 2:
        raise UserError(f"the icons have {len(common)} subjects with {REAL + PICTURES} pictures to train on")
    chosen = draw.choice(len(common), min(CAPTIONS, len(common)), replace=False)
    by_caption = {}
    for k in sorted(chosen.tolist()):
        held = [i for i in of_subject[common[k]] if rows[i].split == "train"]
        picked = draw.choice(held, REAL + PICTURES, replace=False).tolist()
        by_caption[common[k]] = [use(i) for i in picked]
    pools = {}  # of the largest sets: pictures of different subjects
    for name in sorted(of_set, key=lambda each: len(of_set[each]), reverse=True)[:SETS]:
        one_each = {rows[i].words: i for i in draw.permutation(of_set[name]).tolist()}
        pools[name] = [use(i) for i in list(one_each.values())[:POOL]]
    names = {place: rows[i].words for i, place in needed.items()}
    queries = {}
    for group, split in (("train", "train"), ("pairs", "composition"), ("subjects", held_out)):
        possible = [i for i, row in enumerate(rows) if row.split == split and row.set in pools]
        found: list[Query] = []
        for i in draw.permutation(possible).tolist():
            elsewhere = [j for j in of_subject[rows[i].words] if rows[j].set != rows[i].set]
            others = [place for place in pools[rows[i].set] if names[place] != rows[i].words]
            if elsewhere and len(others) >= CANDIDATES - 1 and len(found) < QUERIES:
                stand_in = use(elsewhere[int(draw.integers(len(elsewhere)))])
                found.append(Query(rows[i].full_caption, use(i), others[: CANDIDATES - 1], stand_in))
        queries[group] = found
    contrasts = []
    for pair in mine(rows, WORD_PAIRS, seed):
        group = f"{pair.category}, {'held out' if pair.held_out else 'learnt'}"
        for own, other in ((pair.first, pair.second), (pair.second, pair.first)):
            elsewhere = [j for j in of_subject[rows[own].words] if rows[j].set != rows[own].set]
            real_answer = use(elsewhere[int(draw.integers(len(elsewhere)))]) if elsewhere else None
            contrasts.append(Contrast(group, rows[own].full_caption, use(own), use(other), real_answer))
    asked = {query.own for group in queries.values() for query in group}
    judged_by = [place for pool in pools.values() for place in pool if place not in asked]
    return Reference([rows[place] for place in needed], by_caption, queries, judged_by, contrasts)


# ------------------------------------------------------------------ scores


def score(
    reference: Reference,
    name: str,
    several: Float[Tensor, "p k f"],
    answers: dict[str, Float[Tensor, "q f"]],
    contrasted: dict[int, Float[Tensor, " f"]],
    real: Float[Tensor, "n f"],
) -> IconScore:
    """The scores of pictures: several of each caption, one for each query, and by the contrast's number."""
    compared = torch.stack([real[places[:REAL]] for places in reference.by_caption.values()])
    centre = real.mean(0)
    return IconScore(
        name,
        caption_diversity(several, compared),
        frechet_distance(compared.flatten(0, 1), several.flatten(0, 1)),
        {
            group: accuracy(answers[group], queries, real, centre)
            for group, queries in reference.queries.items()
            if queries
        },
        judged(reference, "set", answers, real),
        judged(reference, "kind", answers, real),
        words_read(reference.contrasts, contrasted, real, centre),
    )


def judged(
    reference: Reference, part: str, answers: dict[str, Float[Tensor, "q f"]], real: Float[Tensor, "n f"]
) -> tuple[float, int]:
    """How often the judge of sets or of kinds recognises the queries' pictures."""

    def labels(places: Sequence[int]) -> list[str]:
        return [getattr(reference.rows[place], part) for place in places]

    judge = StyleJudge.fit(real[reference.judged_by], labels(reference.judged_by))
    asked = [query.own for group in answers for query in reference.queries[group]]
    return judge.accuracy(torch.cat(list(answers.values())), labels(asked))


def words_read(
    contrasts: Sequence[Contrast],
    pictures: dict[int, Float[Tensor, " f"]],
    real: Float[Tensor, "n f"],
    centre: Float[Tensor, " f"],
) -> dict[str, tuple[float, int]]:
    """By group, the share of pictures that are nearer to their own real picture than to the other one."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for number, picture in pictures.items():
        contrast = contrasts[number]
        pair = F.normalize(real[[contrast.own, contrast.other]] - centre, dim=1)
        own, other = (pair @ F.normalize(picture - centre, dim=0)).tolist()
        right[contrast.group].append(own > other)
    return {group: (sum(found) / len(found), len(found)) for group, found in right.items()}


def accuracy(
    pictures: Float[Tensor, "q f"],
    queries: Sequence[Query],
    real: Float[Tensor, "n f"],
    centre: Float[Tensor, " f"],
) -> tuple[float, float]:
    """Share of pictures whose own real picture is the nearest, and among the five nearest, by cosine."""
    ranks = []
    for picture, query in zip(pictures, queries, strict=True):
        among = F.normalize(real[[query.own, *query.others]] - centre, dim=1)
        nearness = among @ F.normalize(picture - centre, dim=0)
        ranks.append(1 + int((nearness[1:] >= nearness[0]).sum()))
    found = torch.tensor(ranks)
    return float((found <= 1).float().mean()), float((found <= 5).float().mean())


def score_real(reference: Reference, real: Float[Tensor, "n f"]) -> IconScore:
    several = torch.stack([real[places[REAL:]] for places in reference.by_caption.values()])
    answers = {
        name: real[[query.stand_in for query in queries]] for name, queries in reference.queries.items()
    }
    contrasted = {
        number: real[each.stand_in]
        for number, each in enumerate(reference.contrasts)
        if each.stand_in is not None
    }
    found = score(reference, "real", several, answers, contrasted, real)
    own = {name: real[[query.own for query in queries]] for name, queries in reference.queries.items()}
    return replace(found, set=judged(reference, "set", own, real), kind=judged(reference, "kind", own, real))


def draw_all(
    model: TextToImage, reference: Reference, resolution: int
) -> tuple[Images, dict[str, Images], Images]:
    """Eight pictures of each caption, one for each query, and one for each contrast."""

    def drawn(pairs: list[tuple[str, int]]) -> Images:
        pictures = [torch.from_numpy(np.array(picture)) for picture in model.draw(pairs, refine=0)]
        return shrink(torch.stack(pictures).permute(0, 3, 1, 2), resolution)

    several = drawn([(caption, seed) for caption in reference.by_caption for seed in range(PICTURES)])
    answers = {
        name: drawn([(query.caption, 1000 + i) for i, query in enumerate(queries)])
        for name, queries in reference.queries.items()
        if queries
    }
    contrasted = drawn([(each.caption, 5000 + i) for i, each in enumerate(reference.contrasts)])
    return several, answers, contrasted


# ------------------------------------------------------------------ output


def table(scores: Sequence[IconScore]) -> str:
    groups = list(scores[0].subject)
    names = ["", "diversity", "latent share", "precision", "coverage", "FD"]
    names += [f"subject, {group}: top-1 / top-5" for group in groups] + ["set", "kind"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
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
            *(f"{share:.0%} of {number}" for share, number in (s.set, s.kind)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def word_table(scores: Sequence[IconScore]) -> str:
    groups = sorted({group for s in scores for group in s.words})
    lines = ["| | " + " | ".join(groups) + " |", "|" + "---|" * (len(groups) + 1)]
    for s in scores:
        cells = [f"{s.words[g][0]:.0%} of {s.words[g][1]}" if g in s.words else "" for g in groups]
        lines.append("| " + " | ".join([s.name, *cells]) + " |")
    return "\n".join(lines)


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
    models: list[Path], icons: Path, out: Path, least: int, final: bool, extractor: Extractor, seed: int
) -> None:
    source = IconSource(str(icons), least_pictures=least)
    loaded = {path.name: imagen_pl.load(path, device="cpu") for path in models}
    for path, model in zip(models, loaded.values(), strict=True):
        check_teachers(path, model, extractor)
    resolution = min([64, *(model.resolution for model in loaded.values())])
    reference = make_reference(source.icon_rows(), "test" if final else "validation", seed)
    real_images = shrink(torch.stack([decode(row.image, 64) for row in reference.rows]), resolution)
    digest = hashlib.sha256(b"".join(row.image for row in reference.rows)).hexdigest()
    key = f"{extractor.name} icons {resolution} {digest}"
    real = cached(key, lambda: extract(extractor, real_images, "real pictures"))
    scores, shown = [score_real(reference, real)], {}
    shown["real"] = torch.cat([real_images[places[REAL:]] for places in reference.by_caption.values()])
    for name, model in loaded.items():
        several, answers, contrasted = draw_all(model, reference, resolution)
        features = extract(extractor, several, name).unflatten(0, (-1, PICTURES))
        answered = {group: extract(extractor, images, name) for group, images in answers.items()}
        by_number = dict(enumerate(extract(extractor, contrasted, name)))
        scores.append(score(reference, name, features, answered, by_number, real))
        shown[name] = several
    print(
        f"{extractor.name} features, {resolution} px, {len(reference.by_caption)} captions of {PICTURES} "
        f"pictures, subjects with {least} pictures or more, seed {seed}\n"
    )
    print(table(scores))
    print(f"\nOne word's difference (chance 50%)\n\n{word_table(scores)}")
    about: dict[str, Any] = {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "extractor": extractor.name,
        "resolution": resolution,
        "least_pictures": least,
        "seed": seed,
        "scores": [asdict(each) for each in scores],
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
    o = parser.parse_args()
    try:
        run(o.models, o.icons, o.out, o.least_pictures, o.final, EXTRACTORS[o.extractor](), o.seed)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
