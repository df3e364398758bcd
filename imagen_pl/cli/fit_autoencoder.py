"""`imagen-pl fit-autoencoder`: train an autoencoder, in whose latents a GAN can be trained."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen_pl.cli.drawing import check_seed
from imagen_pl.cli.options import add_device_argument, verb_parser
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from imagen_pl.data.datamodule import CaptionedImages
    from imagen_pl.training.autoencoder_fit import AutoencoderFit

_HELD_OUT = 500  # images of the scores, at most
_MEASURED = 2048  # images that the latents' variance is measured on, at most
_SHOWN = 8  # pictures of reconstructions.png
_TEACHER = "efficientnet_lite0"
_USUAL_TIME = "00:00:08:00"


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "fit-autoencoder",
        "Train a small autoencoder on images: it makes latents of them, a fraction of their size, and images "
        "of latents. A GAN of latents takes less time at large sizes (docs/latent-space.md). Ctrl-C ends the "
        "training early and keeps what was learnt.",
    )
    parser.add_argument("source", help="the images: as of `imagen-pl plan`, such as a folder, emoji or icons")
    parser.add_argument(
        "--out",
        default="runs/autoencoder",
        metavar="FOLDER",
        help="folder of the autoencoder (default: runs/autoencoder)",
    )
    parser.add_argument(
        "--max_time",
        metavar="DD:HH:MM:SS",
        help=f"length of the training (default: {_USUAL_TIME}, without --kimg)",
    )
    parser.add_argument("--kimg", type=float, metavar="N", help="end after N thousand images")
    parser.add_argument(
        "--resolution",
        type=int,
        default=128,
        metavar="PX",
        help="side of the images, a power of two (default: 128)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        default=64,
        metavar="PX",
        help="side of the squares of them that it is trained on, a power of two (default: 64)",
    )
    parser.add_argument(
        "--latent_channels", type=int, default=4, metavar="N", help="channels of a latent (default: 4)"
    )
    parser.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[48, 96],
        metavar="N",
        help="feature maps at half of the images' side, at a quarter, and so on: two numbers give latents of "
        "a quarter of the side, three of an eighth (default: 48 96)",
    )
    parser.add_argument(
        "--blocks", type=int, default=1, metavar="N", help="residual blocks at each size (default: 1)"
    )
    parser.add_argument(
        "--perceptual_weight",
        type=float,
        default=0.1,
        metavar="W",
        help=f"factor of the distance in features of {_TEACHER}; 0 leaves it out (default: 0.1)",
    )
    parser.add_argument(
        "--kl_weight",
        type=float,
        default=1e-4,
        metavar="W",
        help="factor of the KL divergence: more gives smoother latents, less sharper images (default: 1e-4)",
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam (default: 1e-3)")
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="squares a step (default: 32)"
    )
    parser.add_argument(
        "--fit",
        choices=["crop", "pad"],
        default="crop",
        help="crop keeps the middle square of an image, pad fills up its sides (default: crop)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: 0)")
    add_device_argument(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return fit_autoencoder(make_parser().parse_args(words))


def fit_autoencoder(arguments: argparse.Namespace) -> int:
    """Run the verb. Ctrl-C ends the training early and keeps what was learnt.

    Raises:
        UserError: an argument is out of range, or the images are not available.
    """
    out = Path(arguments.out)
    _check(arguments)
    import torch

    from imagen_pl.cli.lightning_cli import quieten
    from imagen_pl.inference.networks import default_device
    from imagen_pl.models.autoencoders.convolutional import (
        AutoencoderNetwork,
        AutoencoderSizes,
        is_autoencoder,
        save_autoencoder,
    )
    from imagen_pl.models.pretrained.backbones import TimmBackbone
    from imagen_pl.training.autoencoder_fit import AutoencoderFit
    from imagen_pl.training.malloc import keep_freed_memory
    from imagen_pl.training.precision import bfloat16_support

    if out.exists() and not is_autoencoder(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is no autoencoder: name another folder")
    quieten()
    keep_freed_memory()
    limits = _Limits(arguments.kimg, arguments.max_time)
    teacher = TimmBackbone(_TEACHER, arguments.crop) if arguments.perceptual_weight else None
    sizes = AutoencoderSizes(
        arguments.latent_channels, arguments.channels, arguments.blocks, [_TEACHER] if teacher else []
    )
    if arguments.crop % sizes.downsampling:
        raise UserError(f"--crop {arguments.crop} must be a multiple of {sizes.downsampling}, for --channels")
    data = _data(arguments, crop=True)
    data.setup()
    torch.manual_seed(arguments.seed)
    device = torch.device(default_device(arguments.device))
    network = AutoencoderNetwork(sizes).to(device)
    training = AutoencoderFit(
        network,
        teacher,
        arguments.lr,
        arguments.perceptual_weight,
        arguments.kl_weight,
        half=bfloat16_support(device.type).fast,
    )
    images_seen, stopped = _train(training, data, limits)
    network.eval()
    training.measure_latents(
        batch.images for batch in data.pairs.batches(_MEASURED, largest=arguments.crop, one_a_group=False)
    )
    whole = _data(arguments, crop=False)
    whole.setup()
    loader: Any = whole.val_dataloader()  # an empty list where nothing is held out
    held_out = [batch.images for batch in loader]
    scores = training.scores(held_out)
    about = {"resolution": arguments.resolution, "images_seen": images_seen, **scores}
    save_autoencoder(network, sizes, out, about)
    if held_out:
        _write_sheet(training, held_out[0][:_SHOWN], out / "reconstructions.png")
    print(f"{out}: {_said(arguments, images_seen, stopped, scores)}")
    print(
        "Use it: imagen-pl fit --config configs/experiment/icons128_latent.yaml "
        f"--model.generator.init_args.autoencoder.init_args.path {out}"
    )
    return 0


class _Limits:
    """When the training ends, and how much of it is done.

    Args:
        kimg: thousands of images; None sets no limit.
        max_time: as DD:HH:MM:SS; None sets no limit, or 8 minutes where there is no other.
    """

    def __init__(self, kimg: float | None, max_time: str | None) -> None:
        from lightning.pytorch.callbacks import Timer
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        self.images = None if kimg is None else 1000 * kimg
        self.time_s: float | None = None
        if max_time is not None or kimg is None:
            try:
                self.time_s = Timer(max_time or _USUAL_TIME).time_remaining()
            except MisconfigurationException as error:
                raise UserError(
                    f"--max_time {max_time} must be DD:HH:MM:SS, such as {_USUAL_TIME} for 8 minutes"
                ) from error
            if not self.time_s:
                raise UserError(f"--max_time {max_time} must be more than 0")
        self.began = time.monotonic()

    def share(self, images: int) -> float:
        """Share of the training that is done, 0 to 1."""
        parts = [] if self.images is None else [images / self.images]
        if self.time_s is not None:
            parts.append((time.monotonic() - self.began) / self.time_s)
        return min(1.0, max(parts))


def _train(training: AutoencoderFit, data: CaptionedImages, limits: _Limits) -> tuple[int, bool]:
    """Train until a limit or Ctrl-C. Returns the number of images, and whether it was stopped."""
    from imagen_pl.data.progress import progress_bar

    images = 0
    limits.began = time.monotonic()
    with progress_bar("training the autoencoder", 1) as bar:
        try:
            for batch in data.train_dataloader():
                share = limits.share(images)
                if share >= 1:
                    break
                parts = training.step(batch.images, share)
                images += len(batch)
                bar.total = round(images / max(limits.share(images), 1e-6))  # an estimate
                bar.set_postfix({name: f"{value:.3f}" for name, value in parts.items()}, refresh=False)
                bar.update(len(batch))
        except KeyboardInterrupt:
            if not images:
                raise
            return images, True
    return images, False


def _data(arguments: argparse.Namespace, crop: bool) -> CaptionedImages:
    """Squares of the images to train on, or whole ones."""
    from imagen_pl.data.datamodule import CaptionedImages
    from imagen_pl.data.inspect import guess_source

    settings: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "min_size": arguments.resolution // 2,
        "val_samples": _HELD_OUT,
        "fit": arguments.fit,
        "seed": arguments.seed,
        "epoch_kimg": 1e6,  # one endless epoch
        "balance_groups": True,
    }
    if not crop or arguments.crop == arguments.resolution:
        return CaptionedImages(guess_source(arguments.source), arguments.resolution, **settings)
    return CaptionedImages(
        guess_source(arguments.source),
        arguments.crop,
        crop_from=arguments.resolution,
        horizontal_flip=True,
        **settings,
    )


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError if an argument is out of range."""
    check_seed(arguments.seed)
    for name in ("resolution", "crop"):
        side = getattr(arguments, name)
        if side < 16 or side & (side - 1):
            raise UserError(f"--{name} {side} must be a power of two from 16 up")
    if arguments.crop > arguments.resolution:
        raise UserError(f"--crop {arguments.crop} must be at most --resolution {arguments.resolution}")
    for name in ("kimg", "latent_channels", "lr"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value:g} must be more than 0")
    for name in ("perceptual_weight", "kl_weight", "blocks"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} {getattr(arguments, name):g} must be 0 or more")


def _write_sheet(training: AutoencoderFit, images: Any, file: Path) -> None:
    """Held-out pictures, and what the autoencoder makes of them."""
    import torch

    from imagen_pl.imaging.grids import labelled_grid, to_pil

    count = len(images)
    pictures = to_pil(torch.cat([images, training.reconstruct(images)]))
    labelled_grid(pictures, ["real"] * count + ["decoded"] * count, count).save(file)


def _said(arguments: argparse.Namespace, images: int, stopped: bool, scores: dict[str, float]) -> str:
    """What was trained, for the user."""
    parts = (
        f"trained on {images:,} squares of {arguments.crop} px{' (stopped)' if stopped else ''}",
        f"PSNR {scores['psnr']:.1f} dB, SSIM {scores['ssim']:.3f} on {scores['images']:,} held-out images of "
        f"{arguments.resolution} px"
        if scores
        else "no images are held out",
    )
    return "; ".join(parts)
