"""Score a translator of icons, where the true answer is known: the same subject in the other set.

    python -m benchmarks.translation runs/translator --icons icon_sets --out translation.json

Prints a Markdown table, and writes it as JSON with the command, commit and machine, and beside it a grid of
pictures. The subjects are of the test split, so that the translator saw them in no set; icons that look the
same as a training icon are left out. For each ordered pair of domains, such as "Phosphor, thin" to "IconPark,
coloured", up to `--queries` subjects that both have are translated.

- Top-1, top-5: the true icon is ranked, by its nearness to the answer, with 99 icons of other held-out
  subjects in the target domain.
- Distance: of the answer to the true icon.
- Pixels: root mean square difference (0 to 1) after a blur by 4 px. Features: one minus the cosine of
  EfficientNet-Lite1 features, centred on the mean of the candidates.

The answers, beside the translator's by latent and by reference, a training icon of the target domain:

- "input": the source icon as it is.
- "nearest": the training icon of the target domain that is nearest to the source icon (blurred pixels).

"Same designer" are pairs of domains whose sets' names begin alike, as of Phosphor's kinds; "other designer"
are the others, where the same subject has another drawing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

import imagen_pl
from benchmarks.icons import markdown
from benchmarks.machine import command_line, machine
from benchmarks.protocol import extract
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.sources.icons import IconRow, IconSource, domain_of
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil, to_uint8
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.translation import translatable, translated
from imagen_pl.metrics.extractors import EfficientNetLite1, Extractor
from imagen_pl.storage.atomic_files import atomic_write

CANDIDATES, LEAST = 100, 30  # a domain needs so many held-out icons
BLUR = 4  # px
HELD_OUT = ("test", "validation")  # queries are of the first alone
ANSWERS = ("translator, by latent", "translator, by reference", "input", "nearest training icon")
SAME, OTHER = "same designer", "other designer"

Images = UInt8[Tensor, "n 3 h w"]


@dataclass(frozen=True)
class Query:
    """A source icon, its true translation and 99 others of the target domain: places in `Icons`."""

    source: int
    true: int
    others: list[int]
    group: str


@dataclass(frozen=True)
class TranslationScore:
    """One row of the table, of one group of queries: shares and mean distances by measure."""

    answer: str
    group: str
    queries: int
    top1: dict[str, float]
    top5: dict[str, float]
    distance: dict[str, float]


@dataclass
class Icons:
    """All icons of the domains, decoded.

    domains: of each icon.
    """

    rows: list[IconRow]
    images: Images
    domains: list[str]

    def places(self, domain: str, splits: Sequence[str]) -> list[int]:
        """Where the icons of a domain and of some splits are."""
        return [i for i, row in enumerate(self.rows) if row.split in splits and self.domains[i] == domain]


def read_icons(source: IconSource, resolution: int) -> Icons:
    """Icons of domains with enough held-out ones, without held-out icons that look like a training icon."""
    rows = source.icon_rows()
    trained = {row.picture for row in rows if row.split == "train"}
    rows = [row for row in rows if row.split == "train" or row.picture not in trained]
    held: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        held[domain_of(row.set, row.kind)] += row.split in HELD_OUT
    rows = [row for row in rows if held[domain_of(row.set, row.kind)] >= LEAST]
    if not rows:
        raise UserError(f"no domain has {LEAST} held-out icons")
    images = torch.stack([decode(row.image, resolution) for row in rows])
    return Icons(rows, images, [domain_of(row.set, row.kind) for row in rows])


def make_queries(icons: Icons, each: int, seed: int) -> list[Query]:
    """Up to `each` subjects for each ordered pair of domains, chosen at random."""
    draw = np.random.default_rng(seed)
    names = sorted(set(icons.domains))
    held = {name: icons.places(name, HELD_OUT) for name in names}
    tested = {name: {icons.rows[i].words: i for i in icons.places(name, HELD_OUT[:1])} for name in names}
    queries = []
    for a in names:
        for b in names:
            shared = sorted(tested[a].keys() & tested[b].keys())
            if a == b or not shared:
                continue
            for k in sorted(draw.permutation(len(shared))[:each].tolist()):
                words = shared[k]
                others = [i for i in held[b] if icons.rows[i].words != words]
                some = draw.permutation(others)[: CANDIDATES - 1].tolist()
                group = SAME if a.split()[0].strip(",") == b.split()[0].strip(",") else OTHER
                queries.append(Query(tested[a][words], tested[b][words], some, group))
    return queries


# ------------------------------------------------------------------ answers


def answers_of(model: TextToImage, icons: Icons, queries: Sequence[Query], seed: int) -> dict[str, Images]:
    """The answers to the queries, by the names of ANSWERS."""
    draw = np.random.default_rng([seed, 1])
    found: dict[str, list[Tensor]] = {name: [] for name in ANSWERS}
    trained = {name: icons.places(name, ("train",)) for name in set(icons.domains)}
    small = {name: blurred(icons.images[places]) for name, places in trained.items()}
    by_reference = translatable(model.generator).style_from == "latent"
    for k, query in enumerate(queries):
        domain = icons.domains[query.true]
        source = as_float(icons.images[query.source][None])
        reference = int(draw.choice(trained[domain]))
        found["translator, by latent"].append(to_uint8(translated(model, source, domain, seed + k)))
        if by_reference:
            like = as_float(icons.images[reference][None])
            drawn = translated(model, source, domain, reference=like)
            found["translator, by reference"].append(to_uint8(drawn))
        found["input"].append(icons.images[query.source][None])
        gap = (small[domain] - blurred(icons.images[query.source][None])).square().mean((1, 2, 3))
        found["nearest training icon"].append(icons.images[trained[domain][int(gap.argmin())]][None])
    return {name: torch.cat(images) for name, images in found.items() if images}


def as_float(images: Images) -> Float[Tensor, "n 3 h w"]:
    return images.float() / 127.5 - 1


def blurred(images: Images) -> Float[Tensor, "n 3 _h _w"]:
    """0 to 1, by area, so that a stroke that is a pixel off counts little."""
    return F.avg_pool2d(images.float() / 255, BLUR)


# ------------------------------------------------------------------ scores


def pixel_gaps(answers: Images, candidates: Images) -> Float[Tensor, "n m"]:
    """Root mean square differences after the blur."""
    a, b = blurred(answers).flatten(1), blurred(candidates).flatten(1)
    return torch.cdist(a, b) / math.sqrt(a.shape[1])


def feature_gaps(answers: Float[Tensor, "n f"], candidates: Float[Tensor, "m f"]) -> Float[Tensor, "n m"]:
    """One minus the cosine after the candidates' mean is subtracted, without which all are nearly equal."""
    mean = candidates.mean(0)
    a, b = (F.normalize(each - mean, dim=1) for each in (answers, candidates))
    return 1 - a @ b.T


def score(
    icons: Icons, queries: Sequence[Query], answers: dict[str, Images], extractor: Extractor
) -> list[TranslationScore]:
    """The rows of the table: each answer in each group."""
    needed = sorted({i for query in queries for i in (query.true, *query.others)})
    place = {i: k for k, i in enumerate(needed)}
    pictures = icons.images[needed]
    features = extract(extractor, pictures, "candidates")
    found = []
    for name, images in answers.items():
        gaps = {
            "pixels": pixel_gaps(images, pictures),
            "features": feature_gaps(extract(extractor, images, name), features),
        }
        for group in (SAME, OTHER):
            numbers = [k for k, query in enumerate(queries) if query.group == group]
            if not numbers:
                continue
            ranks, distances = {}, {}
            for measure, gap in gaps.items():
                own = [float(gap[k, place[queries[k].true]]) for k in numbers]
                # An icon that is exactly as near as the true one counts as nearer.
                ranks[measure] = [
                    1 + int((gap[k, [place[i] for i in queries[k].others]] <= mine).sum())
                    for k, mine in zip(numbers, own, strict=True)
                ]
                distances[measure] = float(np.mean(own))
            found.append(
                TranslationScore(
                    name,
                    group,
                    len(numbers),
                    {m: float(np.mean([rank <= 1 for rank in r])) for m, r in ranks.items()},
                    {m: float(np.mean([rank <= 5 for rank in r])) for m, r in ranks.items()},
                    distances,
                )
            )
    return found


def table(scores: Sequence[TranslationScore]) -> str:
    head = ["group", "answer", "queries"]
    head += [f"{m}: {what}" for m in ("pixels", "features") for what in ("top-1 / top-5", "distance")]
    rows = []
    for s in sorted(scores, key=lambda s: s.group != SAME):
        cells = [s.group, s.answer, str(s.queries)]
        for measure in ("pixels", "features"):
            cells += [f"{s.top1[measure]:.0%} / {s.top5[measure]:.0%}", f"{s.distance[measure]:.3f}"]
        rows.append(cells)
    return markdown(head, rows)


def picture_grid(model: TextToImage, icons: Icons, sources: Sequence[str], seed: int, each: int = 2) -> Any:
    """For subjects of the test split: a row of translations to every domain, and below it the true icons."""
    names = sorted(set(icons.domains))
    draw = np.random.default_rng([seed, 2])
    white = torch.full_like(icons.images[0], 255)
    true = {name: {icons.rows[i].words: i for i in icons.places(name, HELD_OUT[:1])} for name in names}
    pictures, labels = [], []
    for domain in sources:
        # Subjects with the most true icons, so that most of the lower row is filled.
        subjects = draw.permutation(sorted(true[domain])).tolist()
        subjects.sort(key=lambda words: -sum(words in true[name] for name in names))
        for words in subjects[:each]:
            source = icons.images[true[domain][words]][None]
            drawn = [to_uint8(translated(model, as_float(source), name, seed)) for name in names]
            pictures += [source, *drawn, white[None]]
            pictures += [
                icons.images[true[name][words]][None] if words in true[name] else white[None]
                for name in names
            ]
            labels += [f"{words}: {domain}", *names, "true", *[""] * len(names)]
    return labelled_grid(to_pil(torch.cat(pictures)), labels, columns=len(names) + 1, min_width=64)


def run(path: Path, icons_path: str | None, out: Path, each: int, seed: int) -> None:
    model = imagen_pl.load(path, device="cpu")
    translatable(model.generator)
    settings = (model.description.get("data") or {}).get("init_args", {})
    icons = read_icons(IconSource(icons_path, sets=settings.get("sets")), model.resolution)
    queries = make_queries(icons, each, seed)
    scores = score(icons, queries, answers_of(model, icons, queries, seed), EfficientNetLite1())
    print(table(scores))
    out.parent.mkdir(parents=True, exist_ok=True)
    command = command_line()
    if icons_path is not None:  # without the machine's folders
        command = command.replace(icons_path, Path(icons_path).name)
    names = sorted(set(icons.domains))
    designers = {name.split()[0].strip(","): name for name in reversed(names)}
    picture_grid(model, icons, sorted(designers.values()), seed).save(out.with_suffix(".png"), optimize=True)
    about: dict[str, Any] = {
        "command": command,
        "git": git_state(),
        "machine": machine(),
        "images_seen": model.description.get("images_seen"),
        "seed": seed,
        "domains": names,
        "icons": len(icons.rows),
        "scores": [asdict(each) for each in scores],
    }
    with atomic_write(out) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run, a checkpoint or a release of a Translator")
    parser.add_argument("--icons", help="folder of `imagen-pl data icons`; default: the shipped icons")
    parser.add_argument("--queries", type=int, default=8, help="of a pair of domains; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of queries and styles; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("translation.json"), help="default: %(default)s")
    options = parser.parse_args()
    run(options.model, options.icons, options.out, options.queries, options.seed)


if __name__ == "__main__":
    main()
