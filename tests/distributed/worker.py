"""One process of a training that several share: torchrun starts it, the tests read what it leaves.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.distributed.worker FOLDER

Every process leaves `FOLDER/<name of the run>-<rank>.pt`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from imagen_pl.callbacks.block_policies import Alternate, BlockPolicy, FreezeOldBlocks
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.data import datamodule
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.errors import TrainingStopped
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating, Relativistic
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.models.augment import DiffAugment
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.schedules import Stage
from imagen_pl.training.muon import Muon
from tests.helpers.fakes import MeanColour, TinyBackbone
from tests.helpers.image_files import encoded, noise, write_tar
from tests.helpers.tasks import tiny_losses
from tests.helpers.training import (
    AtEachBatch,
    SaveAt,
    adam,
    sgd,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    weights_of,
)

# 8 px to 48 images; 16 px to 112, fading until 80; then 32 px, fading until 144.
STAGES = (
    Stage(8, kimg=0.048, batch_size=16),
    Stage(16, kimg=0.064, batch_size=16, fade_kimg=0.032),
    Stage(32, kimg=1.0, batch_size=8, fade_kimg=0.032),
)
END = 160
MIDDLE_OF_A_FADE = 128
# The discriminator is reset at every stage; networks and blocks take turns, and one is never trained.
POLICIES: dict[str, BlockPolicy] = {
    "newest": FreezeOldBlocks(kimg=0.032, fresh_discriminator=True),
    "alternate": Alternate(
        0.016,
        [["generator"], ["discriminator.shared", "discriminator.16"], ["generator.8", "discriminator.32"]],
    ),
}


class Watch(Callback):
    """Gradients before each step, summed over processes; which rows were served; weights after each step."""

    def __init__(self) -> None:
        self.gradients: list[tuple[int, str, dict[str, Tensor]]] = []
        self.numbers: list[list[int]] = []
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.scores: list[dict[str, float]] = []
        self.captions: list[list[str]] = []
        self.learn: dict[int, set[str]] = {}  # the blocks that are trained, by the clock at the batch's start

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TextToImageGAN)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.learn[pl_module.images_seen] = {
            f"{group['network']}.{group['block']}"
            for group in groups
            if all(p.requires_grad for p in group["params"])
            and (group["block"] == "shared" or int(group["block"]) <= pl_module.growth.resolution)
        }

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        which = "d" if optimizer is trainer.optimizers[0] else "g"
        found = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        assert isinstance(pl_module, TextToImageGAN)
        self.gradients.append((pl_module.images_seen, which, found))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TextToImageGAN)
        self.numbers.append(batch.indices.tolist())
        self.captions.append(batch.captions)
        self.weights[pl_module.images_seen] = weights_of(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scores.append({n: float(v) for n, v in trainer.callback_metrics.items()})


def uncoupled(accumulate: int = 1) -> TextToImageGAN:
    """Samples of a batch are independent, and differences do not grow, so gradients can be compared."""
    return tiny_gan(
        generator={"text_attention_at": [8]},
        discriminator={"heads_at": [8]},
        adversarial=NonSaturating(),
        penalties=[R1(0.1), R2(0.1, every=2)],
        metrics=[MeanColour()],
        generator_optimizer=sgd(0.003),
        discriminator_optimizer=sgd(0.003),
        accumulate=accumulate,
        gradient_clip=100.0,
    )


def everything() -> TextToImageGAN:
    """Everything that draws random numbers, couples the samples of a process, or has state."""
    torch.manual_seed(0)
    return tiny_gan(
        generator={
            "noise": True,
            "style_mixing": 0.5,
            "self_attention_at": [8],
            "mean_decay": 0.9,
            "text_adapter": TextAdapter(16, hidden_dim=8),
            "prior": ImagePrior(TinyBackbone(), 32, text_dim=16, seen_dim=4, thumbnail_dim=4),
        },
        discriminator={"minibatch_stddev": 4, "text_adapter": TextAdapter(16, hidden_dim=8)},
        adversarial=Relativistic(),
        penalties=[R1(0.5, every=2), R2(0.5)],
        losses=tiny_losses(),
        augment=DiffAugment(probability=0.3, target=0.6, adapt_kimg=1.0),
        generator_optimizer=partial(Muon, lr=1e-3),
        discriminator_optimizer=adam(),
    )


class NotANumber(NonSaturating):
    """From the fourth batch on, the loss of the second process is NaN."""

    calls = 0

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        self.calls += 1
        loss = super().discriminator(real_logits, fake_logits)
        return loss * float("nan") if self.calls > 3 and os.environ.get("RANK") == "1" else loss


def run(
    gan: TextToImageGAN,
    until: int,
    ckpt_path: Path | None = None,
    save: dict[int, Path] | None = None,
    policy: BlockPolicy | None = None,
    data: CaptionedImages | None = None,
) -> dict[str, Any]:
    """Train in the processes that torchrun has started, and return what the tests compare."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    watch = Watch()
    settings: dict[str, Any] = {}
    if processes > 1:
        settings = {"strategy": "ddp_find_unused_parameters_true", "devices": processes}
    growing = ProgressiveGrowing(list(STAGES), reset_optimizer_state=policy is None)
    callbacks = [growing, BlockwiseTraining(policy), SaveAt(save or {}), watch]
    if policy is not None:  # a frozen network takes no step for Lightning to count
        settings["max_steps"] = 10**6
        callbacks.append(
            AtEachBatch(after=lambda s, _: setattr(s.trainer, "should_stop", s.images_seen >= until))
        )
    trainer = tiny_trainer(until, callbacks, STAGES, num_sanity_val_steps=2, **settings)
    data = data or tiny_data(count=40, val_fraction=0.3, val_batch_size=3, caption_dropout=0.1)
    stopped = ""
    try:
        trainer.fit(gan, data, ckpt_path=ckpt_path)
    except TrainingStopped as error:
        stopped = str(error)
    return {
        "gradients": watch.gradients,
        "numbers": watch.numbers,
        "captions": watch.captions,
        "weights": watch.weights,
        "scores": watch.scores,
        "learn": watch.learn,
        "final": weights_of(gan),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "images_seen": gan.images_seen,
        "real_seen": sum(
            metric.real_seen for metric in gan.validation.metrics if isinstance(metric, MeanColour)
        ),
        "stopped": stopped,
    }


def sent_bytes() -> dict[str, Any]:
    """Bytes of gradients that each network's steps send, with small buckets."""
    gan, average = uncoupled(), default_hooks.allreduce_hook
    sent = {"generator": 0, "discriminator": 0}

    def counted(group: Any, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        steps = "generator" if any(p.requires_grad for p in gan.generator.parameters()) else "discriminator"
        sent[steps] += bucket.buffer().numel() * bucket.buffer().element_size()
        return average(group, bucket)

    default_hooks.allreduce_hook = counted  # type: ignore[assignment]
    strategy = DDPStrategy(find_unused_parameters=True, bucket_cap_mb=0.001)
    trainer = tiny_trainer(32, [], STAGES[-1:], strategy=strategy, devices=2)
    trainer.fit(gan, tiny_data(count=40, val_fraction=0.3))
    default_hooks.allreduce_hook = average
    sizes = {name: sum(4 * p.numel() for p in getattr(gan, name).parameters()) for name in sent}
    return {"sent": sent, "sizes": sizes, "batches": trainer.global_step // 2}


def stream(folder: Path, workers: int) -> CaptionedImages:
    """Twelve shards of five images, of which two are held out."""
    if os.environ["RANK"] == "0" and not (folder / "shards").exists():
        for shard in range(12):
            files: dict[str, bytes] = {}
            for i in range(shard * 5, shard * 5 + 5):
                files |= {f"{i:03}.png": encoded(noise(32, 32, seed=i)), f"{i:03}.txt": f"{i}".encode()}
            write_tar(folder / "shards.part" / f"{shard:02}.tar", files)
        (folder / "shards.part").rename(folder / "shards")
    while not (folder / "shards").exists():
        time.sleep(0.05)
    datamodule._BUFFER = 7
    source = WebDatasetSource(str(folder / "shards"))
    return CaptionedImages(source, num_workers=workers, epoch_kimg=0.08, val_fraction=0.17, val_batch_size=3)


def runs(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    checkpoint = folder / "middle.ckpt"
    return {
        "uncoupled": lambda: run(uncoupled(), END),
        "accumulated": lambda: run(uncoupled(accumulate=2), END),
        "everything": lambda: run(everything(), END, save={MIDDLE_OF_A_FADE: checkpoint}),
        "resumed": lambda: run(everything(), END, ckpt_path=checkpoint),
        "sent": sent_bytes,
        "stream": lambda: run(tiny_gan(), END, save={MIDDLE_OF_A_FADE: checkpoint}, data=stream(folder, 2)),
        "stream_resumed": lambda: run(tiny_gan(), END, ckpt_path=checkpoint, data=stream(folder, 2)),
        "stopped": lambda: run(tiny_gan(adversarial=NotANumber()), END),
        **{name: partial(run, everything(), END, policy=policy) for name, policy in POLICIES.items()},
    }


def main(folder: Path) -> None:
    os.environ.setdefault("IMAGEN_PL_CACHE", str(folder / "cache"))
    rank = os.environ["RANK"]
    for name, train in runs(folder).items():
        torch.save(train(), folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
