"""Arguments, help, error messages and silenced warnings of the verbs that use LightningCLI."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import Any, NoReturn

import yaml
from jsonargparse import DefaultHelpFormatter, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from imagen_pl.cli.options import KeptLines, examples_of
from imagen_pl.errors import UserError
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.run_folder import Existing, is_main_process
from imagen_pl.storage.upgrade import renamed_class_paths, upgrade_settings
from imagen_pl.training.precision import PrecisionChoice, choose_precision, kept_precision

_load_yaml = get_loader("yaml")

_HELP_EXAMPLE = {"fit-captioner": "model.captioner.help Captioner"}


class Help(KeptLines, DefaultHelpFormatter):
    """Help in the layout of the other verbs, with the settings' defaults as jsonargparse prints them."""


def parser_settings(verb: str, description: str) -> dict[str, Any]:
    """Usage, description and epilog of the help of a verb that takes configuration files."""
    return {
        "usage": f"imagen-pl {verb} --config FILE [--config FILE ...] [--SECTION.SETTING VALUE ...]",
        "description": f"{description} Every setting below can be given in a configuration file or on the "
        "command line; the last value wins. A list replaces an earlier list, but if both have the same "
        "length, its items keep the earlier values of settings that they leave out. Without "
        "--trainer.precision, bf16-mixed is used where the machine is fast in bfloat16, else 32-true. "
        f"`imagen-pl {verb} --{_HELP_EXAMPLE.get(verb, 'model.generator.help StyleGenerator')}` lists the "
        "settings of a class.",
        "epilog": examples_of(verb),
        "formatter_class": Help,
    }


def add_run_folder_arguments(parser: LightningArgumentParser) -> None:
    """Add --name, --runs_dir and --existing, which say where a run is written."""
    parser.add_argument(
        "--name",
        type=str | None,
        default=None,
        help="the run's name; by default the configuration file's",
    )
    parser.add_argument(
        "--runs_dir", type=str, default="runs", help="folder that holds the folders of all runs"
    )
    parser.add_argument(
        "--existing",
        type=Existing,
        default="error",
        help="if the run's folder already contains a run: stop with an error; move it out of the way, "
        "renamed with its time (nothing is deleted); or resume it from its last checkpoint",
    )


class OneLineCLI(LightningCLI):
    """Reports errors of constructors in one line, and chooses the precision.

    Attributes:
        precision: the number format of this run, and why; None if a plugin of the trainer sets it.
    """

    precision: PrecisionChoice | None = None

    def trainer_precision(self, checkpoint: str | None) -> dict[str, str]:
        """Choose the precision; call it from `instantiate_trainer`.

        Args:
            checkpoint: the file that this run resumes from or scores.

        Returns:
            Arguments for the Trainer.
        """
        given = self._get(self.config_init, "trainer")
        plugins = given["plugins"] if isinstance(given["plugins"], list) else [given["plugins"]]
        if any(isinstance(plugin, Precision) for plugin in plugins):
            return {}
        kept = None if checkpoint is None else kept_precision(read_checkpoint(checkpoint, mmap=True))
        self.precision = choose_precision(given["accelerator"], given["precision"], kept)
        return {"precision": self.precision.name}

    def precision_lines(self) -> list[str]:
        """Lines to print about the precision, with a warning if it is slow; none outside the main process."""
        return [] if self.precision is None or not is_main_process() else self.precision.lines()

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except (ValueError, MisconfigurationException) as error:
            raise UserError(one_line(str(error))) from error


class Parser(LightningArgumentParser):
    """Raises a UserError of one line for wrong arguments."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_line(message)) from ex


def one_line(message: str) -> str:
    """A message of jsonargparse, whose nested reasons take many lines, in one line."""
    lines = (line.strip(" -") for line in message.splitlines())
    message = re.sub(r'Parser key "([^"]*)":', r"\1:", " ".join(line for line in lines if line))
    # For optional settings, "Expected a NoneType" is noise: keep the other reason.
    message = re.sub(r"Does not validate .*? Errors: (.*?) Expected a <class 'NoneType'>.*", r"\1", message)
    # Lightning's loggers check for their package in the constructor.
    if missing := re.findall(r"Requirement '([\w-]+)[^']*' not met", message):
        place = re.search(r"given class_path '([\w.]+)'", message)
        return (
            f"{place[1].rpartition('.')[2] if place else 'this'} needs a package: pip install {missing[-1]}"
        )
    if message.startswith("the following arguments are required"):
        return "name a configuration with --config, as configs/experiment/quickstart.yaml; " + message
    if message.startswith("unrecognized arguments"):
        return message + "; `imagen-pl fit --help` lists every setting"
    return message


def accept_old_names() -> None:
    """Accept the old names of classes and settings in configurations of earlier commits."""
    set_loader("yaml", _load_with_new_names, exceptions=(yaml.YAMLError,))


def _load_with_new_names(text: str) -> Any:
    value = _load_yaml(text)
    upgraded = upgrade_settings(value)
    if upgraded != value:
        renamed = [f"{old} is now {new}" for old, new in renamed_class_paths(value).items()]
        more = f", and {len(renamed) - 1} more" if len(renamed) > 1 else ""
        what = renamed[0] + more if renamed else "a setting was renamed"
        print(
            f"warning: the configuration uses old names ({what}); the run's config.yaml gets the new ones",
            file=sys.stderr,
        )
    return upgraded


def quieten() -> None:
    """Silence Lightning's hints that do not apply here, and its advertisements."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        "Checkpoint directory .* exists and is not empty",
        ".*does not have many workers",
        "You're resuming from a checkpoint that ended before the epoch ended",
        ".*IterableDataset.*__len__",
        "The number of training batches",
        "The dirpath has changed",
        ".*sync_dist=True",  # every process holds the same score already
        ".*module\\(s\\) in eval mode at the start of training",  # the moving average and the text encoder
    ):
        warnings.filterwarnings("ignore", message)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch|lightning|transformers")
