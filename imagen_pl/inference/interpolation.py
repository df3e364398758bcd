"""From one picture to the next, step by step: between captions, and between latents.

Axes: n keyframes, b frames, t tokens, c text features, z latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.sampling_options import check_guidance, check_truncation
from imagen_pl.models.latents import latents
from imagen_pl.types import TextFeatures

_AT_ONCE = 32


def interpolate(
    model: TextToImage,
    keyframes: Sequence[tuple[str, int]],
    frames: int = 24,
    loop: bool = False,
    truncation: float = 1.0,
    guidance: float = 1.0,
    refine: int | None = 0,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Image.Image]:
    """Pictures on the way through keyframes.

    Latents move on a great circle, since all of them are about equally long; captions' features on a line.

    Args:
        model: draws them.
        keyframes: two or more pairs of a prompt and a seed, each drawn exactly as `sample` draws it.
        frames: from one keyframe to the next.
        loop: go back from the last to the first; the first frame does not come twice.
        truncation: 0 to 1; less than 1 gives more typical, less varied pictures.
        guidance: 0 to 10; more than 1 follows the prompts more closely, less than 1 less.
        refine: refinement steps of each frame, as `TextToImage.sample` takes them; 0 by default, since frames
            are refined independently and an animation gets less smooth.
        on_step: called after each refinement step of a batch with the number of its frames.

    Raises:
        UserError: there are fewer than two keyframes, or a number is out of range.
    """
    if len(keyframes) < 2:
        raise UserError("name two keyframes or more to go between")
    if frames < 1:
        raise UserError(f"frames {frames} must be 1 or more")
    check_truncation(truncation)
    check_guidance(guidance)
    steps = model.refine_steps(refine)
    places = _places(len(keyframes), frames, loop)
    return _drawn(model, keyframes, places, truncation, guidance, steps, on_step)


@torch.inference_mode()
def _drawn(
    model: TextToImage,
    keyframes: Sequence[tuple[str, int]],
    places: list[tuple[int, int, float]],
    truncation: float,
    guidance: float,
    refine: int,
    on_step: Callable[[int], object] | None,
) -> Iterator[Image.Image]:
    z = torch.cat([latents([0], seed, model.generator.latent_dim) for _, seed in keyframes])
    text = model.text_encoder.encode([prompt for prompt, _ in keyframes])
    size = min(_AT_ONCE, model.at_once)
    for start in range(0, len(places), size):
        before, after, shares = zip(*places[start : start + size], strict=True)
        a, b, t = torch.tensor(before), torch.tensor(after), torch.tensor(shares)
        between = slerp(z[a], z[b], t).to(model.device)
        words = blend(text[a], text[b], t).to(model.device)
        yield from model.pictures(between, words, truncation, guidance, refine, on_step)


def _places(keyframes: int, frames: int, loop: bool) -> list[tuple[int, int, float]]:
    """Of each frame: the keyframes before and after it, and how far it is from the first to the second."""
    pairs = [(i, (i + 1) % keyframes) for i in range(keyframes if loop else keyframes - 1)]
    places = [(a, b, k / frames) for a, b in pairs for k in range(frames)]
    return places if loop else [*places, (keyframes - 1, keyframes - 1, 0.0)]


def slerp(
    a: Float[Tensor, "b z"], b: Float[Tensor, "b z"], share: Float[Tensor, " b"]
) -> Float[Tensor, "b z"]:
    """On the great circle from a to b, the length going from the one's to the other's (Shoemake, 1985)."""
    lengths = a.norm(dim=1), b.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle, t = cosine.acos(), share.to(a.dtype)
    # Where both point the same way, or opposite ways, there is no circle to go on: a line will do.
    straight = angle.sin() < 1e-4
    sine = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine)[:, None]
    second = torch.where(straight, t, (t * angle).sin() / sine)[:, None]
    direction = first * a / lengths[0][:, None] + second * b / lengths[1][:, None]
    return direction * torch.lerp(lengths[0], lengths[1], t)[:, None]


def blend(a: TextFeatures, b: TextFeatures, share: Float[Tensor, " b"]) -> TextFeatures:
    """On the line from a to b; a token that only one of them has fades in or out."""
    t = share.to(a.pooled.dtype)
    # At the ends the other's tokens are gone, so that a keyframe is what `sample` draws.
    mask = (a.mask & (t < 1)[:, None]) | (b.mask & (t > 0)[:, None])
    return TextFeatures(
        torch.lerp(a.tokens, b.tokens, t[:, None, None]), mask, torch.lerp(a.pooled, b.pooled, t[:, None])
    )
