"""Class weights and class sampling, from the pixels of each class in the training images."""

from typing import Literal

import numpy as np
from jaxtyping import Int64

from kdjax.data.loading.sampling import ClassSampling


def class_weights(
    counts: Int64[np.ndarray, "N K"], weighting: Literal["inverse_frequency", "median_frequency"]
) -> tuple[float, ...]:
    """Returns the weight of each class; 1 for a class that no image has.

    Args:
      counts: the pixels of each class in every image.
      weighting: "inverse_frequency" is all labeled pixels, divided by those of the class and the
        number of classes. "median_frequency" divides the median of the frequencies by that of the
        class (Eigen and Fergus, ICCV 2015). The frequency of a class is its share of the labeled
        pixels in the images that contain the class.
    """
    pixels = counts.sum(0)
    occurs = pixels > 0
    if weighting == "inverse_frequency":
        common, frequency = pixels.sum() / occurs.sum(), pixels[occurs]
    else:
        around = np.where(counts > 0, counts.sum(1, keepdims=True), 0).sum(0)
        frequency = pixels[occurs] / around[occurs]
        common = np.median(frequency)
    weights = np.ones(len(pixels))
    weights[occurs] = common / frequency
    return tuple(weights.tolist())


def class_sampling(counts: Int64[np.ndarray, "N K"], share: float) -> ClassSampling:
    """Returns the sampling that draws a share of the crops by class.

    Args:
      counts: the pixels of each class in every image.
      share: the share, 0 to 1.
    """
    members = [(number, np.flatnonzero(column)) for number, column in enumerate(counts.T)]
    return ClassSampling(share, tuple((number, found) for number, found in members if found.size))
