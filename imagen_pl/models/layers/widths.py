"""Feature maps by resolution."""

from __future__ import annotations

import itertools


def check_channels(channels: dict[int, int], rgb_last: bool = False) -> None:
    """Raise ValueError unless the keys are powers of two from 4 up, each twice the one before.

    With `rgb_last` the last key is the image's, so it has 3 channels.
    """
    resolutions = list(channels)
    if not resolutions:
        raise ValueError("channels is empty: give feature maps by resolution, as {4: 256, 8: 128}")
    for r in resolutions:
        if r < 4 or r > 1024 or r & (r - 1):
            raise ValueError(f"channels: resolution {r} is not a power of two from 4 to 1024")
    for a, b in itertools.pairwise(resolutions):
        if b != 2 * a:
            raise ValueError(f"channels: {b} follows {a}, but each resolution is twice the one before")
    if rgb_last and (len(resolutions) < 2 or channels[resolutions[-1]] != 3):
        raise ValueError(f"channels {channels} must end with the image's three, as {{4: 256, 8: 128, 16: 3}}")
