"""The console command `imagen-pl`.

Heavy imports stand inside the verbs, so that --help answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
from collections.abc import Sequence

from imagen_pl import __version__, parsers
from imagen_pl.errors import TrainingStopped, UserError
from imagen_pl.runs import is_main_process
from imagen_pl.verb_help import EXAMPLES

HELP = """\
usage: imagen-pl VERB ...

Text-to-image GANs: from a folder of captioned images to a trained model.

verbs:
  fit            train a model by a configuration file
  validate       score a checkpoint of a run
  sample         draw pictures for prompts
  sheet          draw drafts for a brief of prompts, on a PDF or HTML sheet
  variants       draw a subject in every style, side by side
  interpolate    go from one prompt to the next in a film
  edit           keep the latent and change the words, side by side
  demo           serve a page to try a model on
  evaluate       score a model's pictures: distances, coverage, retrieval, memorisation
  grow-report    write a page of a run: curves, and samples as they grew
  export         write a model for other programs: safetensors, ONNX, torch.export
  push           publish a model on the Hugging Face hub, with its card
  data           look into a data set, caption its images, write it as shards, rebuild the emoji
  caption        say what pictures show
  fit-captioner  train the network that says it, by itself

examples:
{examples}

`imagen-pl VERB --help` explains each setting. A run lives in runs/NAME: config.yaml, checkpoints/,
samples/, metrics.csv.
""".format(examples=textwrap.indent(EXAMPLES.rstrip(), "  "))


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
        "sheet": _sheet,
        "variants": _variants,
        "interpolate": _interpolate,
        "edit": _edit,
        "demo": _demo,
        "evaluate": _evaluate,
        "grow-report": _grow_report,
        "export": _export,
        "push": _push,
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


# ---------------------------------------------------------------------- the other verbs


def _data(words: list[str]) -> int:
    from imagen_pl.data.verbs import main as data

    return data(words[1:]) or 0


def _sample(words: list[str]) -> int:
    from imagen_pl.sampling import sample

    return sample(parsers.sample_parser().parse_args(words[1:]))


def _sheet(words: list[str]) -> int:
    from imagen_pl.contact_sheet import sheet

    return sheet(parsers.sheet_parser().parse_args(words[1:]))


def _variants(words: list[str]) -> int:
    from imagen_pl.variants import variants

    return variants(parsers.variants_parser().parse_args(words[1:]))


def _interpolate(words: list[str]) -> int:
    from imagen_pl.editing import film

    return film(parsers.interpolate_parser().parse_args(words[1:]))


def _edit(words: list[str]) -> int:
    from imagen_pl.editing import edit

    return edit(parsers.edit_parser().parse_args(words[1:]))


def _demo(words: list[str]) -> int:
    from imagen_pl.app.serving import demo

    return demo(parsers.demo_parser().parse_args(words[1:]))


def _evaluate(words: list[str]) -> int:
    from imagen_pl.evaluating import evaluate

    return evaluate(parsers.evaluate_parser().parse_args(words[1:]))


def _grow_report(words: list[str]) -> int:
    from imagen_pl.run_report import report

    return report(parsers.report_parser().parse_args(words[1:]))


def _export(words: list[str]) -> int:
    from imagen_pl.exporting import export

    return export(parsers.export_parser().parse_args(words[1:]))


def _push(words: list[str]) -> int:
    from imagen_pl.publishing import push

    return push(parsers.push_parser().parse_args(words[1:]))


def _caption(words: list[str]) -> int:
    from imagen_pl.describing import describe

    return describe(parsers.caption_parser().parse_args(words[1:]))


def _fit_captioner(words: list[str]) -> int:
    from imagen_pl.captioner_fitting import fit_captioner

    return fit_captioner(words[1:])


if __name__ == "__main__":
    sys.exit(main())
