"""Examples, layout of `--help`, and options that several verbs share. Imports nothing heavy."""

from __future__ import annotations

import argparse
import textwrap

from imagen_pl.inference.sampling_options import USUAL_STEPS, SamplingOptions

EXAMPLES = """\
imagen-pl new my_project
imagen-pl plan my_photos/ --hours 8
imagen-pl plan emoji --hours 0.13 --out configs/my_emoji.yaml
imagen-pl fit --config configs/experiment/quickstart.yaml
imagen-pl fit --config configs/experiment/folder64.yaml --data.source.path my_photos/ --name photos
imagen-pl fit --config runs/photos/config.yaml --ckpt_path last                  # resume
imagen-pl fit --config configs/experiment/coco256.yaml --trainer.devices 8 --trainer.num_nodes 4
imagen-pl validate --config runs/photos/config.yaml --ckpt_path best
imagen-pl test --config runs/quickstart/config.yaml --ckpt_path best
imagen-pl predict --config runs/quickstart/config.yaml --prompts prompts.csv
imagen-pl sample runs/quickstart "a red heart, fluent style" --num_images 4 --seed 7 --out hearts.png
imagen-pl sample runs/quickstart --prompts prompts.csv --out pictures/
imagen-pl sample runs/quickstart "crown, fluent style" --transparent --plain --out crown.png
imagen-pl sheet runs/quickstart brief.csv --out drafts.pdf
imagen-pl variants runs/quickstart "cupcake" "red heart" --out variants.png
imagen-pl interpolate runs/quickstart "red heart, noto style" "blue square, noto style" --out film.gif
imagen-pl sample icons "bell, outline" --upscaler runs/upsampler --num_images 4 --out large.png
imagen-pl upscale runs/upsampler my_bell.png --prompt "bell, outline" --out large_bell.png
imagen-pl translate runs/translator my_bell.png --to "Phosphor, fill" "IconPark, coloured"
imagen-pl translate runs/translator my_bell.png --to "Phosphor, fill" --like reference.png
imagen-pl edit runs/quickstart "red heart, fluent style" --to "blue heart, fluent style" --out edit.png
imagen-pl edit icons "bell, outline" --to "bell, filled" --image my_bell.png --out edit.png
imagen-pl project icons my_bell.png --prompt "bell, outline" --film search.gif
imagen-pl fit-encoder icons --out encoder.safetensors
imagen-pl project icons my_bell.png --prompt "bell, outline" --encoder encoder.safetensors --steps 50
imagen-pl demo emoji
imagen-pl demo runs/quickstart --export-space my_space/
imagen-pl evaluate runs/quickstart --out evaluation/
imagen-pl evaluate runs/photos --extractors inception_v3 --clip openai/clip-vit-base-patch32
imagen-pl grow-report runs/quickstart
imagen-pl export runs/quickstart --to onnx --out onnx/
imagen-pl push runs/quickstart owner/name --evaluation evaluation/evaluation.json
imagen-pl data inspect my_photos/
imagen-pl data inspect emoji --out emoji.png
imagen-pl data captions my_photos/ --captioner runs/captioner
imagen-pl data captions my_photos/ --captioner emoji --num_beams 4 --overwrite
imagen-pl data shards my_photos/ --out shards/
imagen-pl data shards coco/ --out shards/ --shrink 256 --size_mb 200
imagen-pl data emoji --size 256 --out emoji256.parquet
imagen-pl data icons --out icons64/
imagen-pl data icons --sets tabler ph mdi --size 128 --out icons128/
imagen-pl data push icons64/ owner/icons64
imagen-pl fit-captioner --config configs/experiment/captioner.yaml
imagen-pl caption runs/captioner picture.png
imagen-pl fit-autoencoder icons128/ --out runs/autoencoder --max_time 00:00:08:00
"""


class KeptLines(argparse.HelpFormatter):
    """Wraps text paragraph by paragraph; paragraphs with indented lines keep their line breaks."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = (
            part if "\n  " in part else super(KeptLines, self)._fill_text(part, width, indent)
            for part in text.split("\n\n")
        )
        return "\n\n".join(parts)


def examples_of(verb: str) -> str:
    """A paragraph with every example of a verb, for example "sample" or "data shards"."""
    lines = [line for line in EXAMPLES.splitlines() if line.startswith(f"imagen-pl {verb} ")]
    return "examples:\n" + textwrap.indent("\n".join(lines), "  ")


def verb_parser(verb: str, description: str, notes: str = "") -> argparse.ArgumentParser:
    """A parser of `imagen-pl VERB` whose help ends with the verb's examples and these notes."""
    return argparse.ArgumentParser(
        prog=f"imagen-pl {verb}",
        description=description,
        epilog="\n\n".join(filter(None, (examples_of(verb), notes))),
        formatter_class=KeptLines,
    )


def add_sampling_options(parser: argparse.ArgumentParser, refine: int | None = None) -> None:
    """Add the options of every verb that draws; `sampling_options` reads them.

    Args:
        parser: of the verb.
        refine: default of --refine; None refines if the model can.
    """
    usual = f"{USUAL_STEPS} if the model has a prior, else 0" if refine is None else f"{refine}"
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture (default: 0)")
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="T",
        help="0 to 1; less than 1 gives more typical, less varied pictures (default: 1)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="G",
        help="0 to 10; more than 1 follows the prompt more closely, less than 1 less (default: 1)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=refine,
        metavar="N",
        help="optimisation steps, 0 to 200, that bring each picture closer to what the model's prior "
        f"predicts for the prompt; 0 is off and faster (default: {usual})",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="PX",
        help="side of the pictures, one of the generator's sizes, even where training has not grown to it "
        "(default: the size that training has grown to)",
    )
    add_device_argument(parser)


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The options that `add_sampling_options` added. Raises UserError if one is out of range."""
    return SamplingOptions(
        seed=arguments.seed,
        truncation=arguments.truncation,
        guidance=arguments.guidance,
        refine=arguments.refine,
        device=arguments.device,
    ).check("--")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument of every verb that opens a model."""
    parser.add_argument(
        "model",
        help="a run's folder, a .ckpt file, a release's folder, OWNER/NAME on the Hugging Face hub, or "
        "icons or emoji, which come with this package",
    )


def add_upscaler_argument(parser: argparse.ArgumentParser, given: str = "") -> None:
    """Add the argument of the verbs that can enlarge what they draw.

    Args:
        parser: of the verb.
        given: when the argument has an effect, at the start of its help.
    """
    parser.add_argument(
        "--upscaler",
        metavar="MODEL",
        help=f"{given}enlarge each picture with this model: what `imagen-pl upscale` takes, or none "
        "(default: for icons and emoji of 64 px the upsampler that comes with this package, to 256 px; else "
        "none)",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument of every verb that runs a network."""
    parser.add_argument(
        "--device", help="for example cpu or cuda:1 (default: the first CUDA device if there is one)"
    )


def add_discriminator_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument of the verbs that write a release."""
    parser.add_argument(
        "--with-discriminator",
        action="store_true",
        help="include the discriminator, so that init_from can fine-tune both networks (default: no)",
    )
