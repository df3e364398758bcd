"""What a run computes before its first batch: encoded captions and fitted kernel-ridge modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lightning.pytorch import LightningDataModule, Trainer

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.progress import progress_bar
from imagen_pl.errors import UserError
from imagen_pl.models.kernel_ridge import KernelRidge
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.models.text.feature_cache import TextCache
from imagen_pl.schedules import RunState
from imagen_pl.training.kernel_ridge_fit import KernelRidgeFit

T = TypeVar("T")


class Preparation:
    """Encodes the captions of the data and fits kernel-ridge modules to it, both cached across runs.

    One progress bar covers both. fast_dev_run reads only what its few batches need: captions are encoded in
    the steps, and a module without a cached fit is fitted to 256 captions.

    Args:
        trainer: trainer of the run.
        text_encoder: encodes the captions.
        data: the run's data module; captions of any other than CaptionedImages are encoded in the steps.
        run_state: receives the encoded captions, for the data module.
    """

    def __init__(
        self,
        trainer: Trainer,
        text_encoder: TextEncoder,
        data: LightningDataModule | None,
        run_state: RunState,
    ) -> None:
        self.trainer, self.text_encoder, self.run_state = trainer, text_encoder, run_state
        self.data = data if isinstance(data, CaptionedImages) else None
        self.device = trainer.strategy.root_device
        self.dry_run = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]

    def run(self, modules: Sequence[Sequence[KernelRidge]] = ()) -> None:
        """Encode the captions that are not cached and fit the modules that have no cached fit.

        The first process of each machine encodes; the first of all processes fits.

        Args:
            modules: kernel-ridge modules to fit; of each sequence the first is fitted, and its state is
                copied to the others, which must have the same settings.

        Raises:
            UserError: the data or a frozen network is not available, or the cache cannot be written; errors
                of the fit are raised in every process.
        """
        captions = None if self.data is None or self.dry_run else self.data.captions()
        cache = TextCache.of_encoder(self.text_encoder)
        missing: list[str] = []
        if captions is not None and self.trainer.local_rank == 0:  # machines may not share a disk
            missing = cache.missing(captions)
        fit = self._in_first_process(lambda: self._start_fit(modules)) if modules else None
        images = 0 if fit is None else fit.image_count
        with progress_bar(_description(len(missing), images), len(missing) + images, unit="") as bar:
            if captions is not None:
                cache.encode(self.text_encoder, missing, self.device, bar.update)
                self.trainer.strategy.barrier("text cache")
                self.run_state.text_lookup = cache
            if modules:

                def run_fit() -> None:
                    if fit is not None:
                        fit.run(bar.update)

                self._in_first_process(run_fit)
                self._share(modules)

    def _start_fit(self, modules: Sequence[Sequence[KernelRidge]]) -> KernelRidgeFit:
        first = [alike[0] for alike in modules]
        if self.data is None:
            raise UserError(
                f"{type(first[0]).__name__} is fitted to the images of a CaptionedImages data module: use "
                f"one, or remove {type(first[0]).__name__}"
            )
        return KernelRidgeFit(first, self.text_encoder, self.data, self.device, self.dry_run)

    def _in_first_process(self, work: Callable[[], T]) -> T | None:
        """Its result in the first process, None in the others; a UserError is raised in every process."""
        result, problem = None, ""
        if self.trainer.global_rank == 0:
            try:
                result = work()
            except UserError as error:  # raised below: the other processes wait in broadcast
                problem = str(error)
        problem = self.trainer.strategy.broadcast(problem)
        if problem:
            raise UserError(problem)
        return result

    def _share(self, modules: Sequence[Sequence[KernelRidge]]) -> None:
        """Copy the first process's state of each first module to all that are alike, in every process."""
        # On the CPU: a tensor of one GPU would be unpickled onto the same GPU by every process.
        states = [{name: value.cpu() for name, value in alike[0].state_dict().items()} for alike in modules]
        for alike, state in zip(modules, self.trainer.strategy.broadcast(states), strict=True):
            for module in alike:
                module.load_state_dict(state)


def _description(captions: int, images: int) -> str:
    what = [name for name, count in (("captions", captions), ("images", images)) if count]
    return "preparing: " + " and ".join(what)
