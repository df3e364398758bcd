"""A custom block, named in YAML as tests.helpers.blocks.LoudBlock."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from imagen_pl.models.generators.blocks import BlockPlan, StyleBlock
from imagen_pl.types import TextFeatures


class LoudBlock(StyleBlock):
    """Feature maps times a number.

    Args:
        plan: what the generator asks of it.
        gain: the number.
    """

    def __init__(self, plan: BlockPlan, gain: float = 2.0) -> None:
        super().__init__(plan)
        self.plan, self.gain = plan, gain

    def forward(
        self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b style"], text: TextFeatures
    ) -> Float[Tensor, "b c r r"]:
        return self.gain * super().forward(x, style, text)
