"""Removes a white background: computes the subject's colour and opacity, without a white fringe.

An edge pixel is a mixture, `I = a F + (1 - a) W`, of the subject's colour F and white W. With the distances
from white `v = W - I` and `u = W - F`, this is `v = a u`: across an edge, v keeps its direction and grows to
u. So

    a = max(<v, u> / <u, u>, max_c v_c / 255),    F = W - v / a,

where u is found by walking from the background inwards while v grows and keeps its direction. The second term
is the smallest opacity for which F is a valid colour. Composited on white, the result equals the original
image up to rounding. Only white regions connected to the border are background: the white of an eye stays.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from scipy import ndimage

# Levels of 255, chosen by eye: compression leaves about 8 around a drawing; a model's white is uneven.
_MIN_TOLERANCE, _MAX_TOLERANCE = 8.0, 64.0
_BORDER_FACTOR = 5  # the tolerance is the minimum plus this times the border's median
_MIN_CONTRAST = 16  # levels above the tolerance that a region must reach to be part of the subject
_COLOUR_TOLERANCE = 24.0  # levels from the line between white and a colour; larger on uneven white
_EDGE_PX = 2  # px from the background inwards that may be mixed with it
_MIN_GROWTH = 1.1  # factor a pixel; less growth is shading
_MAX_RISE_RATIO = 1.5  # of a rise to the previous one; much larger at a pale rim inside a dark line
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def remove_background(picture: Image.Image, tolerance: float | None = None) -> Image.Image:
    """The subject of an image on white, as RGBA with straight (not premultiplied) alpha.

    Transparent pixels have the nearest visible colour, so that filtered textures get no white fringe.

    Args:
        picture: an image on white; modes other than RGB are converted.
        tolerance: largest distance of the background's channels from white, levels of 255; None chooses 8 to
            64 by the border's median. Parts of the subject that are paler and touch the border are lost.
    """
    return Image.fromarray(matte(np.asarray(picture.convert("RGB")), tolerance))


def matte(image: UInt8[ndarray, "h w 3"], tolerance: float | None = None) -> UInt8[ndarray, "h w 4"]:
    """The same as `remove_background`, on arrays."""
    v = 255.0 - image
    distance = v.max(-1)
    if tolerance is None:
        border = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
        tolerance = min(_MIN_TOLERANCE + _BORDER_FACTOR * float(np.median(border)), _MAX_TOLERANCE)
    background = _background(distance, tolerance)
    alpha = np.round(255 * _opacity(v, background, max(_COLOUR_TOLERANCE, 1.5 * tolerance))).astype(np.uint8)
    colour = 255 - v / np.maximum(alpha[..., None] / 255, 1 / 255)
    colour = np.round(colour.clip(0, 255)).astype(np.uint8)
    visible = alpha >= 128
    if visible.any():
        below = ndimage.distance_transform_edt(~visible, return_distances=False, return_indices=True)
        colour = np.where((alpha == 0)[..., None], colour[tuple(below)], colour)
    return np.concatenate([colour, alpha[..., None]], axis=-1)


def _background(distance: Float[ndarray, "h w"], tolerance: float) -> Bool[ndarray, "h w"]:
    """Nearly white regions connected to the border, and small specks in them."""
    framed = np.pad(distance <= tolerance, 1, constant_values=True)
    regions, _ = ndimage.label(framed)  # connected by sides, not corners: thin diagonal lines are not crossed
    background = (regions == regions[0, 0])[1:-1, 1:-1]
    subjects, count = ndimage.label(~background, _EIGHT_NEIGHBOURS)
    farthest = ndimage.maximum(distance, subjects, np.arange(count + 1))
    return background | (farthest < tolerance + _MIN_CONTRAST)[subjects]


def _opacity(
    v: Float[ndarray, "h w 3"], background: Bool[ndarray, "h w"], tolerance: float
) -> Float[ndarray, "h w"]:
    """1 inside, 0 outside; at the edge, the share of the subject's colour in `v`."""
    depth = ndimage.distance_transform_cdt(~background, "chessboard")  # px; -1 if there is no background
    near = background & ndimage.binary_dilation(~background, _EIGHT_NEIGHBOURS)
    length = np.linalg.norm(v, axis=-1)
    peak, alpha = v.copy(), (~background).astype(float)
    for layer in range(_EDGE_PX, -1, -1):  # from inside outwards, so that the inner neighbours are done
        at = near if layer == 0 else depth == layer
        rise = _rise(v, length, depth, layer, tolerance)
        best = np.zeros_like(length)
        for offset in _offsets():
            grows = _neighbour(length, offset) >= _MIN_GROWTH * length
            inward = _neighbour(depth, offset) >= layer
            u = _neighbour(peak, offset)
            u_length = np.linalg.norm(u, axis=-1)
            is_steady = u_length - length <= _MAX_RISE_RATIO * rise
            taken = at & grows & inward & is_steady & (u_length > best) & _aligned(v, u, tolerance)
            peak = np.where(taken[..., None], u, peak)
            best = np.where(taken, u_length, best)
        mixed = best > 0
        share = (v * peak).sum(-1) / np.maximum((peak * peak).sum(-1), 1)
        alpha = np.where(mixed, np.maximum(share, v.max(-1) / 255).clip(0, 1), alpha)
    return alpha


def _rise(
    v: Float[ndarray, "h w 3"],
    length: Float[ndarray, "h w"],
    depth: ndarray,
    layer: int,
    tolerance: float,
) -> Float[ndarray, "h w"]:
    """How much `v` grows from the next outer layer to a pixel; infinite in the outermost layers."""
    if layer < 2:
        return np.full_like(length, np.inf)
    shortest = length.copy()
    for offset in _offsets():
        is_outer = (_neighbour(depth, offset) == layer - 1) & _aligned(_neighbour(v, offset), v, tolerance)
        shortest = np.where(is_outer, np.minimum(shortest, _neighbour(length, offset)), shortest)
    return length - shortest


def _aligned(
    v: Float[ndarray, "h w 3"], u: Float[ndarray, "h w 3"], tolerance: float
) -> Bool[ndarray, "h w"]:
    """Whether `v` lies on the line from white to `u`."""
    share = (v * u).sum(-1, keepdims=True) / np.maximum((u * u).sum(-1, keepdims=True), 1)
    return np.linalg.norm(v - share * u, axis=-1) <= tolerance


def _offsets() -> list[tuple[int, int]]:
    return [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def _neighbour(values: ndarray, offset: tuple[int, int]) -> ndarray:
    """The neighbour of each pixel at an offset; zero beyond the border."""
    height, width = values.shape[:2]
    padded = np.pad(values, [(1, 1), (1, 1)] + [(0, 0)] * (values.ndim - 2))
    y, x = 1 + offset[0], 1 + offset[1]
    return padded[y : y + height, x : x + width]
