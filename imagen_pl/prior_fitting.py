"""Before the first batch, the generator's prior sees the training set."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.text.encoder import TextEncoder
from imagen_pl.text.prior import VisualPrior

_BATCH = 128


def spare_ddp(system: LightningModule) -> None:
    """Keep priors out of what DDP sends at each step: they are equal in all processes, and stay so.

    To be called before DDP wraps the system.
    """
    own = [f"{name}.{key}" for name, prior in _priors(system).items() for key in prior.state_dict()]
    if own:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(system, own)


def fit_prior(
    trainer: Trainer, system: LightningModule, text_encoder: TextEncoder, data: CaptionedImages
) -> None:
    """Show the generator's prior the training set; the first process does it for all.

    Raises:
        UserError: no image can be decoded, or the prior's backbone cannot be had.
    """
    priors = list(_priors(system).values())
    if not priors:
        return
    if trainer.global_rank == 0:
        pairs = data.pairs(priors[0].captions, largest=priors[0].backbone.size)
        starts = range(0, len(pairs), _BATCH)
        encoded = [text_encoder.encode(pairs.captions[i : i + _BATCH], system.device) for i in starts]
        priors[0].fit(torch.cat([text.pooled for text in encoded]), pairs.images)
    learnt = trainer.strategy.broadcast(priors[0].state_dict())
    for prior in priors:  # the average has a copy
        prior.load_state_dict(learnt)


def _priors(system: LightningModule) -> dict[str, VisualPrior]:
    return {name: part for name, part in system.named_modules() if isinstance(part, VisualPrior)}
