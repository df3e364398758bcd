"""Fit kernel-ridge modules (the image prior, interpolated captions) before the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxtyping import Float, UInt8
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.progress import with_progress
from imagen_pl.errors import UserError
from imagen_pl.models.kernel_ridge import KernelRidge
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.training.private_api import ignore_in_ddp


def exclude_from_ddp(system: LightningModule) -> None:
    """Keep solved parts out of what DDP sends at each step: they are equal in all processes, and stay so.

    To be called before DDP wraps the system.
    """
    solved = {name: part for name, part in system.named_modules() if isinstance(part, KernelRidge)}
    own = [f"{name}.{key}" for name, part in solved.items() for key in part.state_dict()]
    if own:
        ignore_in_ddp(system, own)


def solved_parts(*networks: nn.Module) -> list[KernelRidge]:
    """What of these networks is solved by the training set."""
    return [part for network in networks for part in network.modules() if isinstance(part, KernelRidge)]


def solve_by_training_set(
    trainer: Trainer,
    system: LightningModule,
    parts: Sequence[KernelRidge],
    text_encoder: TextEncoder,
    data: LightningDataModule | None,
) -> None:
    """Show the training set to what is solved by it; the first process does it for all.

    Args:
        parts: equal ones, of which one is solved and the others take over what it learnt.

    Raises:
        UserError: in every process, where there are no images that can be had, or no backbone.
    """
    if not parts:
        return
    problem = ""
    if trainer.global_rank == 0:
        try:
            if not isinstance(data, CaptionedImages):
                what = type(parts[0]).__name__
                raise UserError(f"{what} learns from a CaptionedImages data module: leave it out")
            parts[0].backbone.load()
            parts[0].fit(_seen(parts[0], text_encoder, data, system))
        except UserError as error:  # the others wait
            problem = str(error)
    # On the CPU: what is sent from one GPU would be unpacked onto the same.
    learnt = {name: value.cpu() for name, value in parts[0].state_dict().items()}
    problem, learnt = trainer.strategy.broadcast((problem, learnt))
    if problem:
        raise UserError(problem)
    for part in parts:
        part.load_state_dict(learnt)


def _seen(
    part: KernelRidge, text_encoder: TextEncoder, data: CaptionedImages, system: LightningModule
) -> Iterator[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b 3 r r"]]]:
    for batch in with_progress(
        data.pairs(part.captions, largest=part.backbone.size), "preprocessing images", size=len
    ):
        text = batch.text or text_encoder.encode(batch.captions, system.device)
        yield text.pooled, batch.images
