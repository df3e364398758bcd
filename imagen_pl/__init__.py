"""Text-to-image GANs in PyTorch Lightning: from a folder of captioned images to a trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage, load

__all__ = ["TextToImage", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late, so that `import imagen_pl` and `imagen-pl --help` do not wait for torch.
    if name in ("TextToImage", "load"):
        from imagen_pl.inference import pipeline as inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
