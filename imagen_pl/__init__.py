"""Text-to-image GANs in PyTorch Lightning: from a folder of captioned images to a trained model."""

__version__ = "0.1.0"
