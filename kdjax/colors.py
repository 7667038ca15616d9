"""Colours of classes that have none of their own."""

import colorsys

import numpy as np
from jaxtyping import UInt8


def distinct_colors(count: int) -> UInt8[np.ndarray, "K 3"]:
    """`count` RGB colours that tell neighbouring ids apart, the same on every call.

    Hues advance by the golden ratio, which never comes back close to a recent one; brightness and
    saturation take turns so that ids with similar hues still differ.
    """
    colors = [
        colorsys.hsv_to_rgb(
            0.58 + i * 0.6180339887, (0.75, 0.5, 0.95)[i % 3], (0.9, 0.98, 0.65)[i // 3 % 3]
        )
        for i in range(count)
    ]
    return np.round(np.asarray(colors).reshape(count, 3) * 255).astype(np.uint8)
