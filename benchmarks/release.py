"""Make the model that ships with the package, and its card, from a run and a captioner.

    python -m benchmarks.release runs/emoji64_projected/checkpoints/last.ckpt --captioner runs/captioner64

Writes imagen_pl/released/emoji/: the generator's average and the captioner in half precision, config.json,
and README.md, the card, with every score of `imagen-pl evaluate` on the splits train, composition and test,
the tables of benchmarks/words.py and benchmarks/captioner.py, samples without selection, samples of the
words' prompts, and the failures on the test split.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.ablation import images_per_second, read_metrics
from benchmarks.protocol import ReferenceSet, extract, make_reference
from benchmarks.quality import circumstances, draw_pictures
from imagen_pl import load
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.splits import by_group
from imagen_pl.data.transforms import decode
from imagen_pl.imaging.grids import labelled_grid, strip, to_pil
from imagen_pl.inference.captioning import load_captioner
from imagen_pl.inference.model_card import model_card
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.retrieval_captioning import RetrievalCaptioner
from imagen_pl.inference.sampling_options import USUAL_STEPS
from imagen_pl.metrics.extractors import EfficientNetLite1
from imagen_pl.models.captioner.weights import save_weights
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.storage.model_paths import CAPTIONER, RELEASED

REPOSITORY = Path(__file__).parents[1]
# With what each is evaluated: of composition there are too few captions for 99 distractors of a style.
SPLITS: dict[str, list[str]] = {"train": [], "composition": ["--distractors", "40"], "test": []}
LARGEST_MB = 50
# Sixty thousand images were no better: val/caption_ce 2.39 against 2.31.
_CAPTIONER = (
    "imagen-pl fit-captioner --config configs/experiment/captioner.yaml --name captioner64 "
    "--data.resolution 64 "
    "--model.kimg 24 --model.learning_rate_schedule.init_args.kimg 24"
)


def write_weights(model: TextToImage, captioner: Path, out: Path) -> None:
    if not model.description.get("captions"):  # of a checkpoint from before these were kept: for --guidance
        rows = EmojiSource().load(SkippedImages())["train"]
        model.description["captions"] = [row.captions[0] for row in rows[:: len(rows) // 63]]
    if isinstance(model.generator, StyleGenerator) and (prior := model.generator.prior) is not None:
        complete(prior, model.text_encoder)
    model.save(out, torch.float16)
    describer = load_captioner(captioner, "cpu")
    save_weights(describer.captioner, out / CAPTIONER, torch.float16)
    shutil.copyfile(captioner / "config.json", out / CAPTIONER / "config.json")
    write_retrieval(out)


def write_retrieval(out: Path) -> None:
    """The captioner that `imagen-pl caption emoji` uses: one training image of each group of skin tones."""
    source = EmojiSource()
    rows = source.load(SkippedImages())["train"]
    rows = [rows[group[0]] for group in by_group(rows)]
    images = torch.stack([decode(source.image(row), 64) for row in rows])
    RetrievalCaptioner.fit([row.captions[0] for row in rows], images).save(out / CAPTIONER)


def complete(prior: ImagePrior, text_encoder: TextEncoder) -> None:
    """Add the principal components, which --refine needs, to a prior that was saved without them."""
    if prior.has_components:
        return
    again = deepcopy(prior)
    data = CaptionedImages(EmojiSource(), batch_size=32, resolution=64)
    data.setup("fit")
    batches = data.pairs.batches(prior.captions, largest=prior.backbone.size)
    again.fit((text_encoder.encode(batch.captions, "cpu").pooled, batch.images) for batch in batches)
    off = (again.weights - prior.weights).abs().max() / prior.weights.abs().max()
    if off > 0.01:
        raise SystemExit(f"the prior differs now (by {off:.1%}): was it fitted to other images?")
    prior.set_components(again.centre, again.directions)


def measure(out: Path, work: Path) -> tuple[list[dict[str, Any]], str, str]:
    """Scores of the release, computed by public commands."""
    found = []
    for split, further in SPLITS.items():
        folder = work / split
        asked = ["--split", split, "--train_images", "10000", "--out", str(folder), *further]
        call(["-m", "imagen_pl.cli.main", "evaluate", str(out), *asked])
        found.append(json.loads((folder / "evaluation.json").read_text()))
    words_table = call(
        [
            "-m",
            "benchmarks.words",
            str(out),
            "--extractor",
            EfficientNetLite1.name,
            "--out",
            str(work / "words"),
        ]
    )
    captions_table = call(
        ["-m", "benchmarks.captioner", str(out), "--split", "test", "--out", str(work / "captions.json")]
    )
    shutil.copyfile(work / "words/words-0.png", out / "words.png")
    return found, with_short_name(words_table, out), with_short_name(captions_table, out)


def call(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def with_short_name(printed: str, out: Path) -> str:
    """A script's output, with the name of the model in place of its folder."""
    return printed.strip().replace(str(out), out.name)


def pages(model: TextToImage, reference: ReferenceSet, out: Path) -> None:
    """Write samples.png, of captions spread over the splits, and failures.png, the worst test samples."""
    pictures = draw_pictures(model, reference)
    rows = {
        split: [k for k, r in enumerate(reference.asked) if reference.pictures[r].split == split]
        for split in SPLITS
    }
    shown = [k for split in SPLITS for k in rows[split][:: max(1, len(rows[split]) // 16)][:16]]
    labelled_grid(
        [to_pil(pictures[k : k + 1])[0] for k in shown],
        [reference.pictures[reference.asked[k]].caption for k in shown],
        columns=8,
        min_width=96,
    ).save(out / "samples.png")
    by_rank = zip(ranks(reference, pictures, rows["test"]), rows["test"], strict=True)
    worst = [row for _, row in sorted(by_rank, key=lambda pair: pair[0])][-16:]
    pairs = [torch.stack([pictures[k], reference.images[reference.asked[k]]]) for k in worst]
    labelled_grid(
        [strip(to_pil(pair), min_width=96) for pair in pairs],
        [reference.pictures[reference.asked[k]].caption for k in worst],
        columns=4,
    ).save(out / "failures.png")


def ranks(reference: ReferenceSet, pictures: Tensor, rows: list[int]) -> list[int]:
    """For each picture, the rank of its real image among those of its style."""
    real = reference.features[[reference.asked[k] for k in rows]].double()
    drawn = extract(EfficientNetLite1(), pictures[rows], "test pictures").double()
    a, b = (torch.nn.functional.normalize(x - real.mean(0), dim=1) for x in (drawn, real))
    styles = [reference.pictures[reference.asked[k]].style for k in rows]
    alike = torch.tensor([[s == t for t in styles] for s in styles])
    nearness = a @ b.T
    return ((nearness > nearness.diagonal()[:, None]) & alike).sum(1).tolist()


def refinement_note(file: Path) -> str:
    """The scores with --refine, from the file that benchmarks/quality.py wrote."""
    found = json.loads(file.read_text())
    score, asked = found["scores"][0], found["captions"]
    test = score["test_retrieval"]
    return (
        f"`--refine {USUAL_STEPS}`, the default, optimises the style of each sample towards the image "
        "features that the prior predicts from the caption; it takes a third of a second more on two cores. "
        f"With {sum(asked.values()):,} captions of `benchmarks/quality.py` and EfficientNet-Lite1's "
        f"features, refined samples have a Fréchet distance of {score['fd']:.1f} and a kernel distance of "
        f"{score['kd']:.4f} to {found['reals']:,} real images, and for {asked['test']} test subjects the "
        f"right one is among the first five of 100 in {test['top5']:.1%} ({test['top1']:.1%} first). All "
        "other scores here are without refinement."
    )


def trained_by(run: Path) -> tuple[list[str], str]:
    """The commands of a run and of the runs that its generator started from, and the time they took."""
    runs = with_stems(run)
    commands: list[str] = []
    took: list[str] = []
    for each in runs:
        starts = json.loads((each / "run.json").read_text())["starts"]
        commands += [start["command"] for start in starts]
        rows = read_metrics(each / "metrics.csv")
        speed, images = images_per_second(rows), rows[-1]["images_seen"]
        config = yaml.safe_load((each / "config.yaml").read_text())
        trainer = config["trainer"]
        precision = starts[0].get("precision") or trainer["precision"]
        took.append(
            f"{each.name} took {images / speed / 60:.0f} minutes, {images:,.0f} images, {speed:.0f} a second "
            f"on average ({trainer['devices']} x {trainer['accelerator']}, {precision}, seed "
            f"{config['seed_everything']}, commit {starts[0]['git']['commit'][:7]})"
        )
    return commands, "; ".join(took)


def made_by(run: Path, about: dict[str, Any]) -> str:
    """How the model was made: the commands, the time they took, and the machine."""
    commands, took = trained_by(run)
    cpu = about["machine"]
    note = (
        f"{took}. On {cpu['cores']} cores of an {cpu['cpu']} shared with light work, torch "
        f"{about['torch']}, one run each. The last command also measured the scores of this card."
    )
    before = made_before(with_stems(run)[0])
    captioner = [] if before else [_CAPTIONER]  # a shipped model's card has it
    return before + "\n".join(["```", *commands, *captioner, about["command"], "```", "", note])


def sections(made: str, refined: str, words: str, captions: str) -> dict[str, str]:
    """The card's further sections, by title.

    Args:
        made: the commands, of `made_by`.
        refined: of `refinement_note`.
        words: table of benchmarks/words.py.
        captions: table of benchmarks/captioner.py.
    """
    return {
        "How it was made": made,
        "Samples": "The samples above are not selected (seed 0): two rows of training captions, two of "
        "combinations of subject and style that were held out, two of held-out subjects.",
        "Refined": refined,
        "Which words it understands": f"{words}\n\n`benchmarks/words.py` explains how each is scored; where "
        "it is by colour or number, anything of that colour or number counts as right. Samples, right and "
        "wrong by these rules:\n\n![Words](words.png)",
        "The captioner": "`imagen-pl caption emoji PICTURE` gives the caption of the most similar training "
        f"image, by EfficientNet-Lite0's features at 128 px.\n\n{captions}",
        "Where it fails": "The sixteen test subjects whose real image ranks lowest among those of its style "
        "by similarity to the sample: the sample, then the real image.\n\n![Failures](failures.png)",
    }


def with_stems(run: Path) -> list[Path]:
    """The folder of a run, or of a checkpoint's, after that of the run it started from, and so on."""
    run = run.parents[1] if run.suffix == ".ckpt" else run
    if not (run / "run.json").is_file():
        raise SystemExit(f"{run} is no run's folder: a card tells how all of the model was made")
    stem = started_from(run)
    return [run] if stem is None or released(stem) else [*with_stems(run.parent.parent / stem), run]


def started_from(run: Path) -> str | None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    stem: str | None = config["model"]["generator"]["init_args"].get("init_from")
    return stem


def released(name: str) -> bool:
    return (RELEASED / name / "README.md").is_file()


def made_before(first: Path) -> str:
    """How the shipped model was made that the first run started from, of its card; "" if there was none."""
    stem = started_from(first)
    if stem is None or not released(stem):
        return ""
    card = (RELEASED / stem / "README.md").read_text(encoding="utf-8")
    section = card.partition("\n## How it was made\n")[2].partition("\n## ")[0].strip()
    return f"{section}\n\nThat was the model `{stem}` of an earlier commit. It went on with:\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument(
        "--captioner",
        type=Path,
        required=True,
        help="a run of `imagen-pl fit-captioner`, or a copy of a release's captioner",
    )
    parser.add_argument("--out", type=Path, default=RELEASED / "emoji", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("runs/release"), help="where the scores go")
    options = parser.parse_args()
    with_stems(options.run)  # before anything is written
    write_weights(load(options.run, "cpu"), options.captioner, options.out)
    size = sum(f.stat().st_size for f in options.out.rglob("*.safetensors")) / 1e6
    if size > LARGEST_MB:
        raise SystemExit(f"{options.out} has {size:.0f} MB of weights: {LARGEST_MB} at most may ship")
    model = load(options.out, "cpu")
    reference = make_reference(EfficientNetLite1(), model.resolution, seed=0)
    pages(model, reference, options.out)
    evaluations, words, captions = measure(options.out, options.work)
    refined = ["--refine", str(USUAL_STEPS), "--out", str(options.work / "refined.json")]
    extractor = EfficientNetLite1.name
    call(["-m", "benchmarks.quality", str(options.out), "--extractor", extractor, *refined])
    about = circumstances(reference, EfficientNetLite1(), [options.run])
    card = model_card(
        "emoji",
        model.description,
        evaluations=evaluations,
        samples="samples.png",
        further=sections(
            made_by(options.run, about), refinement_note(options.work / "refined.json"), words, captions
        ),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")
    print(f"{options.out}: {size:.1f} MB of weights")


if __name__ == "__main__":
    main()
