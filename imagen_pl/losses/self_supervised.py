"""Pretext tasks on the images' own colour and shape."""

from __future__ import annotations

from imagen_pl.losses.terms import Term


class SelfSupervisedTask(Term):
    """A question about an image that needs no caption: its head learns with the discriminator."""
