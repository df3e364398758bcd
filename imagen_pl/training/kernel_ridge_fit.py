"""Fit kernel-ridge modules (the image prior, interpolated captions) before the first batch, or load a fit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningModule
from safetensors import SafetensorError
from torch import Tensor, nn

import imagen_pl.data
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.errors import UserError
from imagen_pl.models.kernel_ridge import KernelRidge, fit_together
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.storage.atomic_files import atomic_write, cache_dir
from imagen_pl.training.private_api import ignore_in_ddp

log = logging.getLogger(__name__)

# Increase it when the same data and settings give another fit than before.
_VERSION = 1
_SETTING_TYPES = (bool, int, float, str, tuple, list, type(None))
# Fits that are installed with this package, in half precision: the quickstart's (benchmarks/ship_prior.py).
_SHIPPED = Path(imagen_pl.data.__file__).parent / "shipped" / "kernel_ridge"
# Captions of a fit under fast_dev_run, which only checks that everything works.
_DRY_RUN_CAPTIONS = 256


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


class KernelRidgeFit:
    """Fits kernel-ridge modules to the training images, or loads fits that are cached or shipped.

    A fit is a safetensors file. Its name is a hash of everything that the fit depends on: images and
    captions, text encoder, backbone with its weights, and the module's settings.

    Args:
        modules: the modules.
        text_encoder: encodes the captions.
        data: the training images.
        device: device of the modules.
        dry_run: for fast_dev_run: without a cached fit, use 256 captions and do not write the cache.

    Raises:
        UserError: the training images or the backbone are not available.
    """

    def __init__(
        self,
        modules: Sequence[KernelRidge],
        text_encoder: TextEncoder,
        data: CaptionedImages,
        device: torch.device,
        dry_run: bool = False,
    ) -> None:
        self.text_encoder, self.data, self.device, self.dry_run = text_encoder, data, device, dry_run
        # Modules without a cached fit, with the cache file of each, by the inputs that they need.
        self._pending: dict[tuple[str, int, int], list[tuple[KernelRidge, Path]]] = {}
        fingerprints: dict[tuple[int, int], str] = {}
        for module in modules:
            backbone = module.backbone.fingerprint()
            inputs = (module.captions, module.backbone.size)
            if inputs not in fingerprints:
                fingerprints[inputs] = data.pairs.fingerprint(*inputs)
            read = f"{backbone} {fingerprints[inputs]}"
            path = cache_dir() / "kernel_ridge" / self._file_name(module, read, device.type)
            shipped = _SHIPPED / self._file_name(module, read, "cpu")  # in half precision: for any device
            if _load(module, path):
                continue
            if _load(module, shipped):
                with suppress(OSError):
                    path.unlink(missing_ok=True)  # a damaged file would be reported in every run
                continue
            self._pending.setdefault((backbone, *inputs), []).append((module, path))

    @property
    def image_count(self) -> int:
        """How many images `run` reads; of a stream, at most."""
        return sum(self.data.pairs.count(self._captions(count)) for _, count, _ in self._pending)

    def run(self, on_read: Callable[[int], object]) -> None:
        """Fit the modules that no cached fit was found for, and cache the result.

        Args:
            on_read: called with the number of images after each batch.

        Raises:
            UserError: there are no training images.
        """
        for (_, captions, size), group in self._pending.items():
            modules = [module for module, _ in group]
            fit_together(modules, self._pairs(self._captions(captions), size, on_read))
            for module, path in group:
                if not self.dry_run:
                    _save(module, path)

    def _captions(self, captions: int) -> int:
        return min(captions, _DRY_RUN_CAPTIONS) if self.dry_run else captions

    def _pairs(
        self, number: int, size: int, on_read: Callable[[int], object]
    ) -> Iterator[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b _c h w"]]]:
        for batch in self.data.pairs.batches(number, largest=size):
            text = batch.text or self.text_encoder.encode(batch.captions, self.device)
            yield text.pooled, batch.images
            on_read(len(batch))

    def _file_name(self, module: KernelRidge, inputs: str, device_type: str) -> str:
        settings = {name: value for name, value in vars(module).items() if isinstance(value, _SETTING_TYPES)}
        settings = {name: value for name, value in settings.items() if name[0] != "_" and name != "training"}
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        # Devices round differently.
        parts = (_VERSION, kind, sorted(settings.items()), float(module.sharpness), device_type)
        digest = hashlib.sha256(f"{parts} {inputs} {self.text_encoder.fingerprint}".encode())
        return f"{digest.hexdigest()[:32]}.safetensors"


def _load(module: KernelRidge, path: Path) -> bool:
    """Load a fit; False if there is none, or a damaged one."""
    if not path.exists():
        return False
    try:
        state = safetensors.torch.load_file(path)
        if state.keys() != module.state_dict().keys():
            raise ValueError(f"it holds {', '.join(state)}")
        module.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("the fit %s is damaged (%s) and is not used", path, reason)
        return False
    return True


def _save(module: KernelRidge, path: Path) -> None:
    state = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
    try:
        with atomic_write(path) as file:
            file.write(safetensors.torch.save(state))
    except (OSError, UserError) as error:
        log.warning("%s is not cached for the next run: %s", type(module).__name__, error)
