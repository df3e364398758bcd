"""The console command `imagen-pl`.

Heavy imports stand inside the verbs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence

from imagen_pl import __version__
from imagen_pl.errors import TrainingStopped, UserError
from imagen_pl.runs import is_main_process

HELP = """\
usage: imagen-pl VERB ...

Text-to-image GANs: from a folder of captioned images to a trained model.

verbs:
  fit            train a model by a configuration file
  validate       score a checkpoint of a run
  sample         draw pictures for prompts
  evaluate       score a model's pictures: distances, coverage, retrieval, memorisation
  data           rebuild the shipped emoji, or look into a data set
  caption        say what pictures show
  fit-captioner  train the network that says it, by itself

examples:
  imagen-pl fit --config configs/quickstart.yaml
  imagen-pl fit --config configs/experiment/folder64.yaml --data.source.path my_photos/ --name photos
  imagen-pl fit --config runs/photos/config.yaml --ckpt_path last                  # resume
  imagen-pl fit --config configs/experiment/coco256.yaml --trainer.devices 8 --trainer.num_nodes 4
  imagen-pl validate --config runs/photos/config.yaml --ckpt_path best
  imagen-pl sample runs/quickstart "a red heart, fluent style" --num_images 4 --seed 7 --out hearts.png
  imagen-pl sample runs/quickstart --prompts prompts.csv --out pictures/
  imagen-pl evaluate runs/quickstart --out evaluation/
  imagen-pl data inspect my_photos/
  imagen-pl fit-captioner --config configs/captioner.yaml
  imagen-pl caption runs/captioner picture.png

`imagen-pl VERB --help` explains each setting. A run lives in runs/NAME: config.yaml, checkpoints/,
samples/, metrics.csv.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        0 done, 1 training broke off, 2 something the user can mend, 130 after Ctrl-C, 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbs = {
        "fit": _train,
        "validate": _train,
        "sample": _sample,
        "evaluate": _evaluate,
        "data": _data,
        "caption": _caption,
        "fit-captioner": _fit_captioner,
    }
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"imagen-pl {__version__}")
        return 0
    if words[0] not in verbs:
        return _fail(f"unknown verb {words[0]!r}: use {', '.join(verbs)}; `imagen-pl --help` shows examples")
    try:
        return verbs[words[0]](words)
    except UserError as error:
        if os.environ.get("IMAGEN_PL_TRACEBACK"):
            raise
        return _fail(str(error))
    except SystemExit as stop:  # argparse: after --help, or a mistake that it has told
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in `imagen-pl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        return _fail(f"{error.strerror}: {error.filename or ''}".rstrip(": "))


def _fail(message: str) -> int:
    rank = "" if is_main_process() else f"[process {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}] "
    print(f"{rank}error: {message}", file=sys.stderr)
    return 2


# ---------------------------------------------------------------------- fit, validate


def _train(words: list[str]) -> int:
    from imagen_pl.callbacks.stopping import Interrupted
    from imagen_pl.fitting import TrainingCLI

    cli = TrainingCLI.__new__(TrainingCLI)  # its folder is told about even if its work breaks off
    try:
        cli.__init__(words)  # type: ignore[misc]
    except Interrupted as stop:
        if not is_main_process():
            return 0  # else Lightning's launcher kills the main process, which may still be writing
        if cli.stopper.saved:
            print(f"Stopped at {cli.model.images_seen:,} images; saved {cli.stopper.saved}")
            print(f"Resume: {cli.run_folder.resume_command()}", flush=True)
        return 128 + stop.signum
    except SystemExit:  # Lightning's answer to a Ctrl-C that could not wait
        if not cli.stopper.hurried:
            raise
        if is_main_process():
            saved = cli.run_folder.newest_checkpoint()
            resume = f"Resume from {saved}: {cli.run_folder.resume_command()}"
            print(f"Stopped at once. {resume if saved else 'Nothing was saved yet.'}", flush=True)
        return 128 + signal.SIGINT
    except TrainingStopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        if cli.stopper.saved:
            print(f"The weights before it are in {cli.stopper.saved}", file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------------- data


def _data(words: list[str]) -> int:
    from imagen_pl.data.verbs import main as data

    return data(words[1:]) or 0


# ---------------------------------------------------------------------- sample


def _sample(words: list[str]) -> int:
    from imagen_pl.sampling import sample

    return sample(_sample_parser().parse_args(words[1:]))


def _sample_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagen-pl sample",
        description="Draw pictures for prompts. A picture is decided by its prompt and its seed.",
        epilog=(
            "A file of prompts is .txt (one a line), .csv or .jsonl (field `prompt`; a field `seed` "
            "overrules --seed). --out DIR then gets one PNG a prompt and a metadata.jsonl with file_name, "
            "prompt, seed and every other field of the row, so that DIR is itself a data set to train on."
        ),
    )
    parser.add_argument("model", help="a run's folder, a .ckpt file, or a release's folder")
    parser.add_argument("prompt", nargs="*", help="what to draw; a row of the grid each")
    parser.add_argument("--prompts", metavar="FILE", help="read the prompts from a .txt, .csv or .jsonl file")
    parser.add_argument("--num_images", type=int, default=1, metavar="N", help="pictures each (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="T",
        help="0 to 1; less than 1 gives more typical, less varied pictures (default: 1)",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="the grid's file (default: sample.png); with --prompts, a folder"
    )
    parser.add_argument("--plain", action="store_true", help="leave the prompts out of the grid")
    parser.add_argument("--singles", metavar="DIR", help="write each picture to a file here as well")
    parser.add_argument("--device", help="as cpu or cuda:1 (default: the first CUDA device if there is one)")
    return parser


# ---------------------------------------------------------------------- evaluate


def _evaluate(words: list[str]) -> int:
    from imagen_pl.evaluating import evaluate

    return evaluate(_evaluate_parser().parse_args(words[1:]))


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagen-pl evaluate",
        description="Score a model's pictures against real images, and write JSON, Markdown and a sheet.",
        epilog=(
            "Of near-alike images (data.balance_groups) one each is taken. What is known of the real images "
            "is kept in the package's cache. Networks that taught the model are refused."
        ),
    )
    parser.add_argument("model", help="a run's folder, a .ckpt file, or a release's folder")
    parser.add_argument(
        "--data", help="as `imagen-pl data inspect` takes it (default: what the model was trained on)"
    )
    parser.add_argument("--split", help="of the data (default: test where there is one, else validation)")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="as data.val_fraction in training, where no split is held out (default: 0.05)",
    )
    parser.add_argument(
        "--num_images", type=int, default=1000, metavar="N", help="captions to draw (default: 1000)"
    )
    parser.add_argument(
        "--train_images",
        type=int,
        default=10_000,
        metavar="N",
        help="training images to look for copies among; 0 looks for none (default: 10000)",
    )
    parser.add_argument(
        "--extractors",
        nargs="+",
        metavar="NAME",
        help="efficientnet_lite0, efficientnet_lite1, inception_v3 (FID), or a network of transformers by "
        "its hub name or folder, as facebook/dinov2-small (default: one that ships and did not teach)",
    )
    parser.add_argument("--clip", metavar="NAME", help="CLIP or its like, by hub name or folder: CLIP score")
    parser.add_argument(
        "--fid_weights", metavar="FILE", help="Inception's weights, where there is no network"
    )
    parser.add_argument("--distractors", type=int, default=99, metavar="N", help="in retrieval (default: 99)")
    parser.add_argument(
        "--style_after",
        default=", ",
        metavar="TEXT",
        help='parts the style from a caption, as in "red heart, noto style" (default: ", ")',
    )
    parser.add_argument("--seed", type=int, default=0, help="of captions and pictures (default: 0)")
    parser.add_argument("--truncation", type=float, default=1.0, metavar="T", help="0 to 1 (default: 1)")
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="folder (default: evaluation)")
    parser.add_argument("--device", help="as cpu or cuda:1 (default: the first CUDA device if there is one)")
    return parser


# ---------------------------------------------------------------------- caption, fit-captioner


def _caption(words: list[str]) -> int:
    from imagen_pl.describing import describe

    return describe(_caption_parser().parse_args(words[1:]))


def _caption_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagen-pl caption",
        description="Say what pictures show. A drawn caption is decided by its picture and its seed.",
    )
    parser.add_argument("model", help="a captioner's folder, or a run or .ckpt that was trained with one")
    parser.add_argument("image", nargs="+", help="a picture")
    parser.add_argument(
        "--num_beams",
        type=int,
        default=1,
        metavar="N",
        help="beginnings to keep; more find likelier captions",
    )
    parser.add_argument(
        "--num_captions", type=int, metavar="N", help="draw so many each, instead of the likeliest one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first caption drawn (default: 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: image, caption, seed")
    parser.add_argument("--device", help="as cpu or cuda:1 (default: the first CUDA device if there is one)")
    return parser


def _fit_captioner(words: list[str]) -> int:
    from imagen_pl.captioner_fitting import fit_captioner

    return fit_captioner(words[1:])


if __name__ == "__main__":
    sys.exit(main())
