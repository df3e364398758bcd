"""What fit, validate and test print at the end: scores, pictures, and how to continue."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lightning.pytorch import Trainer

from imagen_pl.callbacks.base import callbacks_of
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.run_length import ReachedLimit
from imagen_pl.callbacks.sample_grid import SampleGrid
from imagen_pl.inference.refinement import can_refine
from imagen_pl.inference.sampling_options import USUAL_STEPS
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.storage.run_folder import RunFolder


def result_lines(trainer: Trainer, model: TextToImageGAN, run: RunFolder) -> list[str]:
    """What a run that has ended trained, its scores, and where its pictures are."""
    lines = [f"Trained on {model.images_seen:,} images."]
    growth, last = model.growth, model.run_state.stages[-1].resolution
    if growth.resolution < last:
        lines.append(
            f"It ended at {growth.resolution} px, before the stage of {last} px: "
            "see growth.stages, growth.kimg_scale and the run's limits."
        )
    lines += score_lines(trainer)
    keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, KeepCheckpoints)), None)
    if keeper is not None and keeper.best_model_score is not None:
        lines.append(
            f"Best {keeper.monitor}: {float(keeper.best_model_score):.4g}, in {run.checkpoints}/best.ckpt"
        )
    pictures = sorted(run.samples.glob("*.png"))
    drawn = next(c for c in callbacks_of(trainer) if isinstance(c, SampleGrid)).captions
    if pictures and drawn:
        lines.append(f"Pictures: {pictures[-1]}")
    generator = model.ema.generator
    if generator.reads_images:
        lines.append(f"Try it: imagen-pl {generator.verb} {run.path} {generator.verb_arguments}")
    elif pictures and drawn:
        prompt = shlex.quote(drawn[0])
        better = f" --refine {USUAL_STEPS}" if can_refine(generator) else ""
        lines.append(f"Draw more: imagen-pl sample {run.path} {prompt} --num_images 4{better} --out more.png")
    return lines


def score_lines(trainer: Trainer, prefix: str = "val/") -> list[str]:
    """One line per score of the last validation, by name; none if nothing was scored.

    Args:
        trainer: the trainer that validated.
        prefix: printed in place of the scores' own val/, as test/.
    """
    scores = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
    return [f"  {prefix + n.removeprefix('val/'):<32} {v:.4g}" for n, v in sorted(scores.items())]


def continue_lines(run: RunFolder, reached_limits: Sequence[ReachedLimit]) -> list[str]:
    """The limits that ended a run, and the command that resumes it with twice as much.

    Args:
        run: the run's folder.
        reached_limits: those that ended it, from `RunLength.reached_limits`.
    """
    lines = [
        f"The run is at its limit, {setting} {value}: raise it to train longer."
        for setting, value, _ in reached_limits
    ]
    more = "".join(f" {setting} {twice}" for setting, _, twice in reached_limits)
    return [*lines, f"Go on: {run.resume_command()}{more}"]
