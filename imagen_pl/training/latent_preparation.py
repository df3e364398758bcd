"""Encodes the training images before the first batch, where the generator draws latents."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, Trainer

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.progress import progress_bar
from imagen_pl.models.autoencoders.latent_cache import LatentCache, latent_file, write_latents
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.latent import LatentGenerator
from imagen_pl.schedules import RunState


def cache_latents(
    trainer: Trainer, generator: Generator, data: LightningDataModule | None, run_state: RunState
) -> None:
    """Encode the images that are not cached, and let the data module's batches have their latents.

    The first process of each machine encodes. Nothing is cached for a generator of images, if its
    `cache_latents` is false, in fast_dev_run, and where images are flipped, cropped at random or a stream:
    these are encoded in the steps.

    Args:
        trainer: trainer of the run.
        generator: the generator.
        data: the run's data module.
        run_state: receives the cache, for the data module.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    if not isinstance(generator, LatentGenerator) or not isinstance(data, CaptionedImages):
        return
    if not generator.cache_latents or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    files = {}
    missing = []
    for resolution in dict.fromkeys(stage.resolution for stage in data.stages):
        images = data.fixed_images(resolution)
        if images is None:
            return
        files[resolution] = latent_file(generator.autoencoder, images, resolution)
        # Machines may not share a disk.
        if trainer.local_rank == 0 and not files[resolution].is_file():
            missing.append((resolution, images))
    total = sum(len(images) for _, images in missing)
    with progress_bar("encoding images", total) as bar:
        for resolution, images in missing:
            device = trainer.strategy.root_device
            write_latents(files[resolution], generator.autoencoder, images, resolution, device, bar.update)
    trainer.strategy.barrier("latent cache")
    run_state.latent_lookup = LatentCache(files)
