"""Make the model of icons that ships with the package, and its card, from a run.

    python -m benchmarks.release_icons runs/icons64
    python -m benchmarks.release_icons runs/all_icons --icons icons64

Writes imagen_pl/released/icons/: the generator's average and the discriminator in half precision,
config.json, samples.png and README.md, the card. The card has the scores of `imagen-pl evaluate` and of
benchmarks/icons.py on the test split, and samples of thirty prompts, eight seeds each: ten subjects in sets
that were learnt, ten pairs of subject and set that were held out, and ten held-out subjects. They are the
first queries of the benchmark: nobody chose them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.icon_reference import make_reference
from benchmarks.machine import describe_machine
from benchmarks.release import call, made_before, trained_by, with_stems
from imagen_pl import load
from imagen_pl.data.sources.icons import SHIPPED, IconSource
from imagen_pl.imaging.grids import labelled_grid, strip
from imagen_pl.inference.export import export_safetensors
from imagen_pl.inference.model_card import model_card
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.storage.model_paths import DISCRIMINATOR_WEIGHTS, RELEASED, WEIGHTS

PROMPTS, SEEDS, LARGEST_MB = 10, 8, 30
TITLES = {"train": "learnt", "composition": "a new pair", "test": "a new subject"}
EXAMPLE = "bell, outline"


def prompts() -> dict[str, list[str]]:
    """Prompts by what was held out of them."""
    reference = make_reference(IconSource().icon_rows(), "test", seed=0)
    groups = zip(TITLES, reference.queries.values(), strict=True)
    return {split: [query.caption for query in queries[:PROMPTS]] for split, queries in groups}


def sample_sheet(model: TextToImage, asked: dict[str, list[str]]) -> Image.Image:
    """A row for each prompt: eight seeds."""
    pictures, labels = [], []
    for split, captions in asked.items():
        for caption in captions:
            drawn = model.draw([(caption, seed) for seed in range(SEEDS)])
            pictures.append(strip([*drawn], min_width=64))
            labels.append(f"{caption} ({TITLES[split]})")
    return labelled_grid(pictures, labels, columns=2)


def made_by(run: Path, icons: Path, remark: str) -> str:
    """The commands of a run and of those that it started from, the time they took, and the machine."""
    commands, took = trained_by(run)
    note = f"{took}. {describe_machine()}. {remark}".rstrip()
    release = f"python -m benchmarks.release_icons runs/{run.name}"
    if icons != SHIPPED:
        release += f" --icons {icons.name}"
    return made_before(with_stems(run)[0]) + "\n".join(["```", *commands, release, "```", "", note])


def sections(made: str, tables: str) -> dict[str, str]:
    return {
        "How it was made": made,
        "Samples": "Every row above is one prompt with the seeds 0 to 7, not selected: the first ten prompts "
        "of each group of `benchmarks/icons.py`. A new pair is a subject and a set that were both learnt, "
        "but not together; a new subject was not learnt.",
        "Diversity and control": f"`benchmarks/icons.py`, whose docstring defines the columns, on the test "
        f"split:\n\n{tables}",
    }


def forget_folder(release: Path) -> None:
    """Describe the data as the icons that are installed with the package: others lack the run's folder."""
    file = release / "config.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    description["data"]["init_args"] |= {"path": None, "least_pictures": 1}
    file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--out", type=Path, default=RELEASED / "icons", help="a new folder")
    parser.add_argument("--work", type=Path, default=Path("runs/release_icons"), help="where the scores go")
    parser.add_argument(
        "--icons", type=Path, default=SHIPPED, help="the icons that it was trained on, which the card credits"
    )
    parser.add_argument("--remark", default="", help="about how it was trained, for the card")
    o = parser.parse_args()
    made = made_by(o.run, o.icons, o.remark)
    export_safetensors(load(o.run, "cpu"), o.out, half=True, with_discriminator=True)
    weights = {name: (o.out / name).stat().st_size / 1e6 for name in (WEIGHTS, DISCRIMINATOR_WEIGHTS)}
    if sum(weights.values()) > LARGEST_MB:
        raise SystemExit(
            f"{o.out} has {sum(weights.values()):.0f} MB of weights: {LARGEST_MB} at most may ship"
        )
    forget_folder(o.out)
    model = load(o.out, "cpu")
    sample_sheet(model, prompts()).save(o.out / "samples.png")
    call(
        ["-m", "imagen_pl.cli.main", "evaluate", str(o.out), "--split", "test", "--out", str(o.work / "test")]
    )
    asked = [str(o.out), "--icons", str(SHIPPED), "--final", "--out", str(o.work / "icons.json")]
    tables = call(["-m", "benchmarks.icons", *asked])
    description: dict[str, Any] = json.loads((o.out / "config.json").read_text(encoding="utf-8"))
    description["data"]["init_args"]["path"] = str(o.icons)
    card = model_card(
        "icons",
        description,
        evaluations=[json.loads((o.work / "test/evaluation.json").read_text())],
        samples="samples.png",
        further=sections(made, tables.strip()),
        discriminator_mb=weights[DISCRIMINATOR_WEIGHTS],
        prompt=EXAMPLE,
    )
    (o.out / "README.md").write_text(card, encoding="utf-8")
    print(f"{o.out}: {', '.join(f'{name} {size:.1f} MB' for name, size in weights.items())}")


if __name__ == "__main__":
    main()
