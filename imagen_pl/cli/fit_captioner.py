"""`imagen-pl fit-captioner`: LightningCLI for training a standalone captioner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

import imagen_pl
from imagen_pl.callbacks.csv_logger import MetricsCSV
from imagen_pl.callbacks.graceful_stop import GracefulStop, Interrupted
from imagen_pl.callbacks.run_record import RunRecord
from imagen_pl.callbacks.slow_recipe import SlowRecipe
from imagen_pl.cli.lightning_cli import (
    OneLineCLI,
    Parser,
    accept_old_names,
    add_run_folder_arguments,
    parser_settings,
    quieten,
)
from imagen_pl.cli.run_names import folder_of_run
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.errors import TrainingStopped
from imagen_pl.storage.checkpoint_io import check_same_tensors, read_checkpoint
from imagen_pl.storage.model_paths import CAPTIONER_WEIGHTS
from imagen_pl.storage.run_folder import is_main_process
from imagen_pl.storage.run_lock import RunLock
from imagen_pl.training.atomic_checkpoints import AtomicCheckpointIO
from imagen_pl.training.captioner_module import CaptionerProgress, CaptionerTraining, KeepCaptioner
from imagen_pl.training.class_paths import import_all_parts

_VERB = "fit-captioner"
_FORMAT = 1


class CaptionerCLI(OneLineCLI):
    """LightningCLI for a captioner, with a folder for each run.

    Args:
        words: the words after `imagen-pl fit-captioner`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.stopper = GracefulStop(say=say)
        quieten()
        import_all_parts()
        accept_old_names()
        super().__init__(
            CaptionerTraining,
            CaptionedImages,
            save_config_callback=None,  # this class saves it, in the run's folder
            trainer_defaults={
                "enable_model_summary": False,
                "enable_progress_bar": False,
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
            },
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": f"imagen-pl {_VERB}",
                **parser_settings(_VERB, "Train a captioner alone, on real pairs."),
            },
            args=self.words,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_run_folder_arguments(parser)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from: last of this run, or a .ckpt file",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def before_instantiate_classes(self) -> None:
        settings = self.config
        self.run_folder = run = folder_of_run(settings, self.words, "captioner")
        self.run_lock = RunLock(run.path)
        if is_main_process():
            self.run_lock.take()
        settings.trainer.default_root_dir = str(run.path)
        self.resume_from = None
        if settings.ckpt_path is None and settings.existing == "resume" and run.newest_checkpoint():
            settings.ckpt_path = "last"
        if settings.ckpt_path is not None:
            self.resume_from = str(run.checkpoint(settings.ckpt_path))
        elif is_main_process():
            if settings.existing == "error":
                run.check_free()
            elif settings.existing == "move" and run.has_results():
                say(f"Kept the earlier run as {run.move_away()}")
                self.run_lock.release()  # the locked file was moved with the folder

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        run, described = self.run_folder, self._described()
        self.keeper = KeepCaptioner(run.path, described)
        last = ModelCheckpoint(run.checkpoints, save_last=True, save_top_k=0, enable_version_counter=False)
        given = self._get(self.config_init, "trainer")["callbacks"] or []
        callbacks = [
            *(given if isinstance(given, list) else [given]),
            self.keeper,
            CaptionerProgress(),
            SlowRecipe(),
            RunRecord(self._configuration(), run.name, ["imagen-pl", _VERB, *self.words]),
            self.stopper,
            last,
        ]
        kwargs |= self.trainer_precision(self.resume_from)
        return super().instantiate_trainer(
            callbacks=callbacks, logger=[MetricsCSV(run.path)], plugins=[AtomicCheckpointIO()], **kwargs
        )

    def _configuration(self) -> str:
        """All settings as YAML, which `--config` accepts."""
        kept = self.config.clone()
        for name in ("config", "ckpt_path", "existing"):
            kept.pop(name, None)
        settings = yaml.safe_load(self.parser.dump(kept, skip_none=False, skip_validation=True))
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)

    def _described(self) -> dict[str, Any]:
        settings = yaml.safe_load(self._configuration())
        return {
            "format": _FORMAT,
            "imagen_pl": imagen_pl.__version__,
            "captioner": settings["model"]["captioner"],
            **{name: settings["data"][name] for name in ("resolution", "aspect_ratio", "alpha")},
        }

    def fit(self) -> None:
        """Train, and save the captioner in the run's folder."""
        run = self.run_folder
        if is_main_process():
            run.path.mkdir(parents=True, exist_ok=True)
            self.run_lock.take()
        if self.resume_from is not None:
            held = read_checkpoint(self.resume_from, mmap=True)["state_dict"]
            advice = "Resume with the configuration that the checkpoint was trained with."
            check_same_tensors(self.model.state_dict(), held, self.resume_from, advice)
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        say(f"Run {run.path}: captioner {size:.1f} M parameters")
        for line in self.precision_lines():
            say(line)
        self.trainer.fit(self.model, self.datamodule, ckpt_path=self.resume_from)
        self.trainer.save_checkpoint(run.checkpoints / "last.ckpt")
        self.finish("Trained on")

    def finish(self, done: str) -> None:
        """Save the captioner if it was never scored, and print its score and folder."""
        if not (self.run_folder.path / CAPTIONER_WEIGHTS).is_file():
            self.keeper.write(self.model)
        best = float(self.model.best)
        score = f", val/caption_ce {best:.3f} at its best" if best < float("inf") else ""
        say(f"{done} {self.model.images_seen:,} images{score}; the captioner is in {self.run_folder.path}")
        say(f"Read a picture: imagen-pl caption {self.run_folder.path} picture.png")


def run(words: Sequence[str]) -> int:
    """Run the verb.

    Returns:
        0 done, 1 training broke off, 130 after Ctrl-C, 143 after SIGTERM.
    """
    cli = CaptionerCLI(words)
    try:
        cli.fit()
    except Interrupted as stop:
        if is_main_process():
            cli.finish("Stopped at")
            say(f"Resume: imagen-pl {_VERB} --config {cli.run_folder.config} --ckpt_path last")
        return 128 + stop.signum
    except TrainingStopped as stop:
        say(f"stopped: {stop}")
        return 1
    return 0


def say(line: str) -> None:
    """Print a line, in the main process only."""
    if is_main_process():
        print(line, flush=True)
