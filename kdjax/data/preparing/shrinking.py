"""Makes large images and their labels smaller."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kdjax.data.preparing.band_files import BandImage
from kdjax.data.preparing.image_io import Photo


def shrink(
    image: Photo | BandImage, label: UInt8[np.ndarray, "H W"], max_side: int
) -> tuple[Photo | BandImage, UInt8[np.ndarray, "h w"]]:
    """Returns an image and its label with a longer side of `max_side` pixels.

    The pixels of images are averaged. Labels take the value under the center of each pixel.

    Args:
      image: the image.
      label: its label.
      max_side: less than its longer side.
    """
    height, width = (max(1, round(side * max_side / max(label.shape))) for side in label.shape)
    rows, columns = (
        ((2 * np.arange(new) + 1) * old // (2 * new)).astype(int)
        for new, old in zip((height, width), label.shape, strict=True)
    )
    smaller = label[rows][:, columns]
    # Pillow averages the pixels under a triangle that grows with the factor.
    if isinstance(image, Photo):
        return Photo(image.pixels.resize((width, height), Image.Resampling.BILINEAR), None), smaller
    planes = [
        np.asarray(
            Image.fromarray(image.pixels[..., band].astype(np.float32)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for band in range(image.pixels.shape[-1])
    ]
    pixels = np.stack(planes, -1)
    if image.pixels.dtype.kind == "u":
        pixels = np.round(pixels)
    return BandImage(pixels.astype(image.pixels.dtype)), smaller
