"""The bands of images that are not RGB photos: their number type and their statistics."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from kdjax.utils.errors import UserError

TYPES = ("uint8", "uint16", "float32")
MOST = 16  # bands
# Pictures show values up to this many standard deviations from the mean of a band.
_SHOWN = 2.0


class Bands(NamedTuple):
    """The bands of the images of a data set, `[H, W, C]`.

    Attributes:
      dtype: the number type of the images, one of `TYPES`.
      mean: the mean of each band over the training images, in the units of the images.
      std: the standard deviation of each band.
      rgb: the bands that stand for red, green, and blue in pictures, and that take the weights of
        these colors from a network that was trained on photos.
    """

    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rgb: tuple[int, ...] = (0, 1, 2)

    @property
    def channels(self) -> int:
        """The number of bands, C."""
        return len(self.mean)

    @property
    def batch_dtype(self) -> type[np.generic]:
        """The number type of batches: 8 bits stay 8 bits, and all others become float32."""
        return np.uint8 if self.dtype == "uint8" else np.float32

    @property
    def padding(self) -> tuple[float, ...]:
        """The value of each band beyond the border of an image: about its mean."""
        return tuple(map(round, self.mean)) if self.dtype == "uint8" else self.mean

    def picture(self, image: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """Returns an image `[H, W, C]` as an RGB picture."""
        if self == RGB:
            return image
        chosen = list(self.rgb)
        mean, std = np.array(self.mean)[chosen], np.array(self.std)[chosen]
        shown = (image[..., chosen].astype(np.float32) - mean) / (2 * _SHOWN * std) + 0.5
        return np.round(255 * shown.clip(0, 1)).astype(np.uint8)


# Photos. The mean is ImageNet's, which normalization turns into (almost) 0.
RGB = Bands("uint8", (124.0, 116.0, 104.0), (58.0, 57.0, 57.0))


def default_rgb(channels: int) -> tuple[int, ...]:
    """Returns the first three bands, or the first one three times if there are fewer."""
    return (0, 1, 2) if channels >= 3 else (0, 0, 0)


def check_rgb(rgb: Sequence[int], channels: int, where: str) -> None:
    """Requires three bands of `channels` for a picture.

    Raises:
      UserError: if they are not three, or one does not exist.
    """
    if len(rgb) != 3 or not all(0 <= band < channels for band in rgb):
        raise UserError(
            f"{where} {','.join(map(str, rgb))}: name three of the bands 0..{channels - 1}"
        )


class BandSums:
    """The sums over images from which the statistics of their bands follow."""

    def __init__(self, channels: int):
        self._pixels = 0
        # In float64, which holds the sums of 2**37 values of 16 bits exactly.
        self._sums = np.zeros((2, channels))

    def add(self, image: np.ndarray) -> None:
        """Adds an image `[H, W, C]`."""
        self._pixels += image.shape[0] * image.shape[1]
        for band in range(image.shape[-1]):
            values = image[..., band].astype(np.float64).ravel()
            self._sums[:, band] += values.sum(), values @ values

    def join(self, other: "BandSums") -> None:
        """Adds the images of other sums."""
        self._pixels += other._pixels
        self._sums += other._sums

    def bands(self, dtype: str, rgb: tuple[int, ...] = ()) -> Bands:
        """Returns the statistics of all images that were added."""
        mean, squares = self._sums / max(self._pixels, 1)
        std = np.sqrt(np.maximum(squares - mean**2, 0))
        std[std == 0] = 1.0  # a constant band
        channels = len(mean)
        return Bands(dtype, tuple(mean.tolist()), tuple(std.tolist()), rgb or default_rgb(channels))


def measure_bands(images: Iterable[np.ndarray], rgb: tuple[int, ...] = ()) -> Bands:
    """Returns the number type and the statistics of the bands of images.

    Args:
      images: the training images, `[H, W, C]`, all of one number type.
      rgb: the bands for red, green, and blue; empty for the first three.

    Raises:
      UserError: if there is no image, or images differ in their type or number of bands.
    """
    sums, dtype, channels = None, "", 0
    for image in images:
        if sums is None:
            dtype, channels = str(image.dtype), image.shape[-1]
            sums = BandSums(channels)
        if (str(image.dtype), image.shape[-1]) != (dtype, channels):
            raise UserError(
                f"images have different bands: {channels} of {dtype}, and {image.shape[-1]} of "
                f"{image.dtype}"
            )
        sums.add(image)
    if sums is None:
        raise UserError("there is no image to measure the bands of")
    if rgb:
        check_rgb(rgb, channels, "rgb")
    return sums.bands(dtype, rgb)
