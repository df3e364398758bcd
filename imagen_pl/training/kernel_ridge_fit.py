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


def exclude_from_ddp(module: LightningModule) -> None:
    """Exclude kernel-ridge modules from DDP's broadcasts: they are equal in all processes and stay constant.

    Call it before DDP wraps the module.
    """
    regressions = {name: part for name, part in module.named_modules() if isinstance(part, KernelRidge)}
    own = [f"{name}.{key}" for name, part in regressions.items() for key in part.state_dict()]
    if own:
        ignore_in_ddp(module, own)


def kernel_ridge_modules(*networks: nn.Module) -> list[KernelRidge]:
    """The kernel-ridge modules of these networks, which are fitted to the training set."""
    return [part for network in networks for part in network.modules() if isinstance(part, KernelRidge)]


def fit_kernel_ridge(
    trainer: Trainer,
    module: LightningModule,
    parts: Sequence[KernelRidge],
    text_encoder: TextEncoder,
    data: LightningDataModule | None,
) -> None:
    """Fit kernel-ridge modules to the training set in the first process, and send the result to the others.

    Args:
        trainer: trainer of the run.
        module: the LightningModule that owns the kernel-ridge modules.
        parts: identical modules: the first is fitted, and its state is copied to the others.
        text_encoder: encodes the captions.
        data: the run's data module; it must be a CaptionedImages.

    Raises:
        UserError: the training images or the backbone are not available; it is raised in every process.
    """
    if not parts:
        return
    problem = ""
    if trainer.global_rank == 0:
        try:
            if not isinstance(data, CaptionedImages):
                what = type(parts[0]).__name__
                raise UserError(
                    f"{what} is fitted to the images of a CaptionedImages data module: leave it out"
                )
            parts[0].backbone.load()
            parts[0].fit(_training_pairs(parts[0], text_encoder, data, module))
        except UserError as error:  # raised below, in every process: the others wait in broadcast
            problem = str(error)
    # On the CPU: a tensor of one GPU would be unpickled onto the same GPU by every process.
    fitted = {name: value.cpu() for name, value in parts[0].state_dict().items()}
    problem, fitted = trainer.strategy.broadcast((problem, fitted))
    if problem:
        raise UserError(problem)
    for part in parts:
        part.load_state_dict(fitted)


def _training_pairs(
    part: KernelRidge, text_encoder: TextEncoder, data: CaptionedImages, module: LightningModule
) -> Iterator[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b 3 r r"]]]:
    for batch in with_progress(
        data.pairs(part.captions, largest=part.backbone.size), "preprocessing images", size=len
    ):
        text = batch.text or text_encoder.encode(batch.captions, module.device)
        yield text.pooled, batch.images
