"""Made-up images and labels."""

import numpy as np


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, rng.integers(0, 5, (height, width)).astype(np.uint8)
