"""How pictures are sampled: settings shared by the verbs, and their limits. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from imagen_pl.errors import UserError

MAX_GUIDANCE = 10.0
# Refinement steps; 20 are what benchmarks/RESULTS.md measured.
USUAL_STEPS = 20
PROJECTION_STEPS = 300  # of `imagen-pl project`
MAX_STEPS = 200


class Drawing(TypedDict):
    """The settings that `TextToImage.draw` takes beside prompts and seeds."""

    truncation: float
    guidance: float
    refine: int | None


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of every verb that draws.

    Args:
        seed: of the first picture.
        truncation: 0 to 1; less than 1 gives more typical, less varied pictures.
        guidance: 0 to 10; more than 1 follows the prompt more closely, less than 1 less.
        refine: refinement steps, 0 to 200; None takes 20 if the model can refine, else 0.
        device: for example cpu or cuda:1; None takes the first CUDA device if there is one.
    """

    seed: int = 0
    truncation: float = 1.0
    guidance: float = 1.0
    refine: int | None = None
    device: str | None = None

    def check(self, prefix: str = "") -> SamplingOptions:
        """Return these options, or raise UserError if one is out of range.

        Args:
            prefix: put before an option's name in the message, for example "--".
        """
        check_truncation(self.truncation, f"{prefix}truncation")
        check_guidance(self.guidance, f"{prefix}guidance")
        if self.refine is not None:
            check_refine(self.refine, f"{prefix}refine")
        return self

    def drawing(self) -> Drawing:
        """The settings that `TextToImage.draw` takes, by name."""
        return {"truncation": self.truncation, "guidance": self.guidance, "refine": self.refine}


def check_truncation(truncation: float | None, name: str = "truncation") -> float:
    """Raise UserError with this name if the truncation is out of range."""
    if truncation is None or not 0 <= truncation <= 1:
        raise UserError(f"{name} {truncation} is not between 0 and 1")
    return float(truncation)


def check_guidance(guidance: float | None, name: str = "guidance") -> float:
    """Raise UserError with this name if the guidance is out of range."""
    if guidance is None or not 0 <= guidance <= MAX_GUIDANCE:
        raise UserError(f"{name} {guidance} is not between 0 and {MAX_GUIDANCE:g}")
    return float(guidance)


def check_refine(steps: float | None, name: str = "refine") -> int:
    """Raise UserError with this name unless it is a whole number of steps in range."""
    if steps is None or not float(steps).is_integer() or not 0 <= steps <= MAX_STEPS:
        raise UserError(f"{name} {steps} is not a whole number from 0 to {MAX_STEPS}")
    return int(steps)


def check_noise(noise: float, name: str = "noise") -> float:
    """Raise UserError with this name if the noise that an upscaler adds is out of range."""
    if not 0 <= noise <= 1:
        raise UserError(f"{name} {noise} is not between 0 and 1")
    return noise
