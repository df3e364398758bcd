"""TrainingCLI: LightningCLI for fit, validate, test and predict, with a folder for each run."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from imagen_pl.callbacks.base import is_dry_run
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.csv_logger import MetricsCSV
from imagen_pl.callbacks.graceful_stop import GracefulStop
from imagen_pl.callbacks.latent_share import LatentShare
from imagen_pl.callbacks.progress import RunProgress
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.callbacks.run_length import RunLength
from imagen_pl.callbacks.run_record import RunRecord
from imagen_pl.callbacks.sample_grid import SampleGrid
from imagen_pl.callbacks.slow_recipe import SlowRecipe
from imagen_pl.cli.counting import counted
from imagen_pl.cli.lightning_cli import (
    Help,
    OneLineCLI,
    Parser,
    accept_old_names,
    add_run_folder_arguments,
    parser_settings,
    quieten,
)
from imagen_pl.cli.linked_settings import link_sizes
from imagen_pl.cli.predictions import Predicting
from imagen_pl.cli.run_loggers import loggers_of_run, open_wandb
from imagen_pl.cli.run_messages import continue_lines, result_lines, score_lines
from imagen_pl.cli.run_names import folder_of_run
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.storage.checkpoint_io import check_same_tensors, read_checkpoint
from imagen_pl.storage.run_folder import is_main_process, sweep_trial
from imagen_pl.storage.run_lock import RunLock
from imagen_pl.training.atomic_checkpoints import AtomicCheckpointIO
from imagen_pl.training.class_paths import import_all_parts
from imagen_pl.training.private_api import find_unused_parameters

_SCORING = ("validate", "test", "predict")  # verbs that read a checkpoint and train nothing
# Settings of one start, not of the run: they are not saved with its configuration.
_NOT_KEPT = ("config", "ckpt_path", "existing", "weights_only", "verbose")


class TrainingCLI(OneLineCLI):
    """LightningCLI for TextToImageGAN and CaptionedImages, with a folder for each run.

    Args:
        args: the words after `imagen-pl`, such as ["fit", "--config", "configs/experiment/quickstart.yaml"].
        run: False only constructs the objects.
        predicting: prompts and output of `predict`; None draws for the captions of the held-out images.
    """

    def __init__(self, args: Sequence[str], run: bool = True, predicting: Predicting | None = None) -> None:
        self.words = list(args)
        self.predicting = predicting or Predicting()
        self.stopper = GracefulStop(say=self.say)
        quieten()
        import_all_parts()
        accept_old_names()
        super().__init__(
            TextToImageGAN,
            CaptionedImages,
            save_config_callback=None,  # RunRecord saves it in the run's folder
            trainer_defaults={
                "enable_model_summary": False,
                "max_epochs": -1,
                "strategy": "auto",
            },
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": "imagen-pl",
                "formatter_class": Help,  # inherited by the subcommands
                "fit": parser_settings("fit", "Train a model."),
                "validate": parser_settings("validate", "Score a checkpoint of a run (by default its last)."),
                "test": parser_settings(
                    "test", "Score a checkpoint of a run (by default its last) on the test split of its data."
                ),
                "predict": parser_settings(
                    "predict",
                    "Draw a picture for each caption of the held-out images, into the run's predictions/: "
                    "PNG files and a metadata.jsonl. --prompts FILE draws the prompts of a .txt, .csv or "
                    ".jsonl file in their place; --out DIR and --seed N set the folder and the first seed.",
                ),
            },
            args=self.words,
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ------------------------------------------------------------------ arguments

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {"model", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": own | {"train_dataloaders", "val_dataloaders"},
            "validate": own | {"dataloaders", "verbose"},
            "test": own | {"dataloaders", "verbose"},
            "predict": own | {"dataloaders", "return_predictions"},
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="seed of the networks' first weights; true draws one",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's settings first, Lightning's long list last."""
        add_run_folder_arguments(parser)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from, or to score: last or best of this run, a .ckpt file, or another "
            "run's folder",
        )
        parser.add_argument(
            "--max_images",
            type=int | None,
            default=None,
            help="end training after this many images; --trainer.max_time (DD:HH:MM:SS) limits the time. "
            "--trainer.max_steps counts the steps of both optimizers, so two or more per batch",
        )
        parser.add_lightning_class_args(ProgressiveGrowing, "growth")
        parser.add_lightning_class_args(BlockwiseTraining, "blockwise_training")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(KeepCheckpoints, "checkpoint")
        parser.add_lightning_class_args(TextToImageGAN, "model")
        parser.add_lightning_class_args(CaptionedImages, "data")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self.settings.ckpt_path}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    @property
    def settings(self) -> Namespace:
        """The parsed configuration of the subcommand."""
        return self.config[self.config["subcommand"]] if "subcommand" in self.config else self.config

    # ------------------------------------------------------------------ the run's folder

    def _parse_ckpt_path(self) -> None:
        """Find the run's folder and the checkpoint; Lightning would merge stored settings over the YAML."""
        settings = self.settings
        self.run_folder = folder_of_run(settings, self.words, "run")
        if "ckpt_path" not in settings:
            return
        if self.config.get("subcommand") in _SCORING:
            settings.ckpt_path = str(self.run_folder.checkpoint(settings.ckpt_path or "last"))
            return
        if self._writes():
            self.run_lock = RunLock(self.run_folder.path)
            self.run_lock.take()
        newest = self.run_folder.newest_checkpoint()
        if settings.ckpt_path is None and settings.existing == "resume" and newest is not None:
            settings.ckpt_path = "last"
        if settings.ckpt_path is not None:
            settings.ckpt_path = str(self.run_folder.checkpoint(str(settings.ckpt_path)))
        elif settings.existing == "error" and self._writes():
            self.run_folder.check_free()

    def _identify(self) -> None:
        """Set the run's id: that of the sweep's trial, on a resume the recorded one, else a new one."""
        resumed = self.settings.get("ckpt_path") is not None
        known = sweep_trial() or (resumed and self.run_folder.read_record().get("id"))
        self.run_id = str(known or secrets.token_hex(4))

    def _writes(self) -> bool:
        return is_main_process() and not self.settings.trainer.fast_dev_run

    def before_instantiate_classes(self) -> None:
        self._identify()
        link_sizes(self.settings.model, self.settings.data)
        trainer = self.settings.trainer
        trainer.default_root_dir = str(self.run_folder.path)
        if self.config.get("subcommand") in _SCORING:
            trainer.logger = False
        if self.config.get("subcommand") == "test":
            self.settings.data.val_split = "test"
        trainer.logger = loggers_of_run(trainer.logger, self.run_folder, self.settings.name, self.run_id)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = list(given["callbacks"] or [])
        if given["enable_progress_bar"] is not False and not any(
            isinstance(c, ProgressBar) for c in callbacks
        ):
            callbacks.append(RunProgress())
        self.run_length = RunLength(self.settings.get("max_images"), given["max_time"])
        callbacks.append(self.run_length)
        callbacks.append(RunRecord(self.configuration(), self.run_id, ["imagen-pl", *self.words]))
        callbacks += [SlowRecipe(), LatentShare()]
        callbacks.append(self.stopper)
        loggers = given["logger"]
        if loggers is not False:
            loggers = [*loggers, MetricsCSV(self.run_folder.path)]
        plugins = given["plugins"] or []
        plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        kwargs |= self.trainer_precision(self.settings.get("ckpt_path"))
        # RunLength applies max_time: Lightning's own limit does not count preprocessing and validation.
        own = {"callbacks": callbacks, "logger": loggers, "plugins": plugins, "max_time": None}
        trainer = super().instantiate_trainer(**own, **kwargs)
        find_unused_parameters(trainer.strategy)
        return trainer

    def configuration(self) -> str:
        """All settings as YAML, which `--config` accepts."""
        parser = self._parser(self.config.get("subcommand"))
        kept = self.settings.clone()
        for name in _NOT_KEPT:
            kept.pop(name, None)
        settings = yaml.safe_load(parser.dump(kept, skip_none=False, skip_validation=True))
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)

    # ------------------------------------------------------------------ fit

    def before_fit(self) -> None:
        settings = self.settings
        self.run_length.begin()
        if settings.ckpt_path is not None:
            self._check_checkpoint(settings.ckpt_path)
        elif settings.existing == "move" and self._writes() and self.run_folder.has_results():
            self.say(f"Kept the earlier run as {self.run_folder.move_away()}")
            self.run_lock.release()  # the locked file was moved with the folder
        if self._writes():
            self.run_folder.path.mkdir(parents=True, exist_ok=True)
            self.run_lock.take()
            if self.run_lock.held:
                self.run_folder.remove_part_files()
            open_wandb(self.trainer.loggers)
        networks = (("generator", self.model.generator), ("discriminator", self.model.discriminator))
        sizes = [f"{name} {sum(p.numel() for p in n.parameters()) / 1e6:.1f} M" for name, n in networks]
        self.say(f"Run {self.run_folder.path}: {', '.join(sizes)} parameters, {self._machine()}")
        for line in self.precision_lines():
            self.say(line)
        if is_dry_run(self.trainer):
            self.say(
                f"Dry run (trainer.fast_dev_run {self.settings.trainer.fast_dev_run}): a few batches of "
                "training and validation. A prior without a cached fit is fitted to 256 captions; no run is "
                "written."
            )

    def before_validate(self) -> None:
        self._check_checkpoint(self.settings.ckpt_path)
        for line in self.precision_lines():
            self.say(line)

    before_test = before_validate

    def _machine(self) -> str:
        trainer = self.trainer
        device = trainer.strategy.root_device.type
        return f"{trainer.world_size} x {device}, {trainer.precision}"

    def _check_checkpoint(self, path: str) -> None:
        checkpoint = read_checkpoint(path, mmap=True)
        advice = "Give the configuration that the checkpoint was trained with."
        check_same_tensors(self.model.state_dict(), checkpoint["state_dict"], path, advice)

    def after_fit(self) -> None:
        """Print the result, and how to continue."""
        trainer, run = self.trainer, self.run_folder
        if not trainer.is_global_zero:
            return
        if is_dry_run(trainer):
            self.say("The dry run has ended without an error. Train: leave out trainer.fast_dev_run.")
            return
        limits = self.run_length.reached_limits(trainer, self.model.images_seen)
        for line in [*result_lines(trainer, self.model, run), *continue_lines(run, limits)]:
            self.say(line)

    def after_validate(self, prefix: str = "val/") -> None:
        """Print the checkpoint and its scores."""
        seen, resolution = self.model.images_seen, self.model.growth.resolution
        self.say(f"{self.settings.ckpt_path}: {seen:,} images seen, {resolution} px")
        advice = "  no scores: name some in model.metrics, as configs/experiment/quickstart.yaml does"
        for line in score_lines(self.trainer, prefix) or [advice]:
            self.say(line)

    def test(self, model: TextToImageGAN, **settings: Any) -> None:
        """Score the test split: the validation loop, on other images."""
        self.trainer.validate(model, **settings)

    def after_test(self) -> None:
        """Print the checkpoint and its scores."""
        self.after_validate(prefix="test/")

    def predict(self, model: TextToImageGAN, datamodule: CaptionedImages, **_: Any) -> None:
        """Draw the prompts of a file, or the captions of the held-out images."""
        checkpoint = Path(self.settings.ckpt_path)
        out = self.predicting.out or self.run_folder.path / "predictions"
        number = self.predicting.draw(checkpoint, datamodule, out)
        self.say(f"{out}: {counted(number, 'picture')} and metadata.jsonl, by {checkpoint}")

    @staticmethod
    def say(line: str) -> None:
        """Print a line, in the main process only."""
        if is_main_process():
            print(line, flush=True)
