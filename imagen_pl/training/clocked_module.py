"""A LightningModule with a clock: the number of images seen."""

from __future__ import annotations

from lightning.pytorch import LightningModule

from imagen_pl.schedules import RunState


class ClockedModule(LightningModule):
    """Counts the images seen.

    Attributes:
        run_state: where the run is; the data module and the callbacks share it.
    """

    run_state: RunState

    @property
    def images_seen(self) -> int:
        """The clock: images seen over all processes."""
        return self.run_state.images_seen

    @images_seen.setter
    def images_seen(self, images: int) -> None:
        self.run_state.images_seen = images
