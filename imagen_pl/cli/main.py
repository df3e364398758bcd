"""The console command `imagen-pl`.

Heavy imports are inside the verbs' functions, so that --help answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Sequence

from imagen_pl import __version__
from imagen_pl.cli.options import EXAMPLES
from imagen_pl.errors import UserError
from imagen_pl.storage.run_folder import is_main_process

VERBS = (
    "new",
    "plan",
    "fit",
    "validate",
    "test",
    "predict",
    "sample",
    "sheet",
    "variants",
    "interpolate",
    "upscale",
    "translate",
    "edit",
    "project",
    "fit-encoder",
    "demo",
    "evaluate",
    "grow-report",
    "export",
    "push",
    "data",
    "caption",
    "fit-captioner",
    "fit-autoencoder",
)
HELP = """\
usage: imagen-pl VERB ...

Text-to-image GANs: from a folder of captioned images to a trained model.

verbs:
  new              write a small project that uses imagen_pl as a library
  plan             write a configuration for your data, your time and this machine
  fit              train a model from a configuration file
  validate         score a checkpoint of a run on its validation images
  test             score a checkpoint of a run on its test images
  predict          draw pictures for held-out captions, or for a file of prompts
  sample           draw pictures for prompts
  sheet            draw pictures for a file of prompts, as a PDF or HTML sheet
  variants         draw a subject in every style, side by side
  interpolate      write an animation from one prompt to the next (GIF, WebP, MP4)
  upscale          enlarge pictures with a trained upsampler
  translate        translate pictures to other domains, such as another icon set
  edit             draw the same latents, or a picture of yours, with another prompt
  project          find the styles with which a model draws your picture
  fit-encoder      train an encoder, with which `project` needs a shorter search
  demo             serve a web page to try a model
  evaluate         score a model: distances, precision and recall, retrieval, memorisation
  grow-report      write an HTML report of a run: loss curves and samples over time
  export           write a model as safetensors, ONNX or torch.export
  push             upload a model with its card to the Hugging Face hub
  data             inspect a data set, caption its images, write shards, build and push icons
  caption          caption pictures
  fit-captioner    train a standalone captioner
  fit-autoencoder  train an autoencoder, for a GAN of its latents

examples:
{examples}

`imagen-pl VERB --help` explains each setting. A run lives in runs/NAME: config.yaml, checkpoints/,
samples/, metrics.csv.
""".format(examples=textwrap.indent(EXAMPLES.rstrip(), "  "))


# A full disk or quota, a file that is too large, a folder without write permission.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        0 done, 1 training failed, 2 an error that the user can fix, 130 after Ctrl-C, 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"imagen-pl {__version__}")
        return 0
    if words[0] not in VERBS:
        return _fail(f"unknown verb {words[0]!r}: use {', '.join(VERBS)}; `imagen-pl --help` shows examples")
    try:
        return _run(words[0], words[1:])
    except UserError as error:
        if os.environ.get("IMAGEN_PL_TRACEBACK"):
            raise
        return _fail(str(error))
    except SystemExit as stop:  # argparse, after --help or an error that it has printed
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in `imagen-pl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        return _fail(f"{error.strerror}: {error.filename or ''}".rstrip(": "))


def _run(verb: str, words: list[str]) -> int:
    """Run the module of this package that has the verb's name."""
    module = importlib.import_module(f"imagen_pl.cli.{verb.replace('-', '_')}")
    code: int = module.run(words)
    return code


def _fail(message: str) -> int:
    rank = "" if is_main_process() else f"[process {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}] "
    print(f"{rank}error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
