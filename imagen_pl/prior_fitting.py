"""Before the first batch, the generator's prior sees the training set."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float, UInt8
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.looking import looking_at
from imagen_pl.errors import UserError
from imagen_pl.text.encoder import TextEncoder
from imagen_pl.text.prior import VisualPrior


def spare_ddp(system: LightningModule) -> None:
    """Keep priors out of what DDP sends at each step: they are equal in all processes, and stay so.

    To be called before DDP wraps the system.
    """
    own = [f"{name}.{key}" for name, prior in _priors(system).items() for key in prior.state_dict()]
    if own:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(system, own)


def fit_prior(
    trainer: Trainer, system: LightningModule, text_encoder: TextEncoder, data: LightningDataModule | None
) -> None:
    """Show the generator's prior the training set; the first process does it for all.

    Raises:
        UserError: in every process, where there are no images that can be had, or no backbone.
    """
    priors = list(_priors(system).values())
    if not priors:
        return
    problem = ""
    if trainer.global_rank == 0:
        try:
            if not isinstance(data, CaptionedImages):
                raise UserError(
                    "a VisualPrior learns from a CaptionedImages data module: leave the prior out"
                )
            priors[0].backbone.load()
            priors[0].fit(_seen(priors[0], text_encoder, data, system))
        except UserError as error:  # the others wait
            problem = str(error)
    # On the CPU: what is sent from one GPU would be unpacked onto the same.
    learnt = {name: value.cpu() for name, value in priors[0].state_dict().items()}
    problem, learnt = trainer.strategy.broadcast((problem, learnt))
    if problem:
        raise UserError(problem)
    for prior in priors:  # the average has a copy
        prior.load_state_dict(learnt)


def _seen(
    prior: VisualPrior, text_encoder: TextEncoder, data: CaptionedImages, system: LightningModule
) -> Iterator[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b 3 r r"]]]:
    for batch in looking_at(data.pairs(prior.captions, largest=prior.backbone.size), "images"):
        text = batch.text or text_encoder.encode(batch.captions, system.device)
        yield text.pooled, batch.images


def _priors(system: LightningModule) -> dict[str, VisualPrior]:
    return {name: part for name, part in system.named_modules() if isinstance(part, VisualPrior)}
