"""Generated scenes of five bands, of which three look like a photo and do not show every class.

    python -m kdjax compare --config configs/five_bands.py --workdir runs/five_bands
    python -m kdjax compare --config configs/five_bands.py:rgb --workdir runs/five_bands_rgb

Each scene has fields, forest, water, and shadow. In the three visible bands, a field looks like
forest, and water like shadow; the two infrared bands tell them apart. The numbers have 16 bits. The
first command gives both networks all bands, and the second command the visible ones.
"""

import numpy as np
from scipy import ndimage

from kdjax import recipes
from kdjax.config import Config, network
from kdjax.data import Dataset, measure_bands

NAMES = ("field", "forest", "water", "shadow")
PALETTE = np.array([[200, 180, 60], [30, 110, 40], [40, 90, 200], [70, 70, 70]])
# The mean of each class: blue, green, red, and two infrared bands.
MEANS = np.array(
    [
        [900, 1300, 1100, 2600, 3400],
        [900, 1300, 1100, 3900, 1700],
        [600, 600, 500, 300, 200],
        [600, 600, 500, 900, 800],
    ]
)
NOISE = 0.15  # of a pixel, as a share of the mean
SIDE = 64
VISIBLE = (0, 1, 2)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint16 `[64, 64, 5]`, and its label."""
    generator = np.random.default_rng(seed)
    # The highest of four smooth surfaces gives the class of a pixel.
    surfaces = ndimage.gaussian_filter(generator.normal(size=(4, SIDE, SIDE)), (0, 6, 6))
    label = surfaces.argmax(0).astype(np.uint8)
    light = 1 + 0.2 * ndimage.gaussian_filter(generator.normal(size=(SIDE, SIDE)), 4)[..., None]
    image = MEANS[label] * light * generator.normal(1, NOISE, (SIDE, SIDE, 5))
    return image.clip(0, 65535).round().astype(np.uint16), label


def scenes(bands: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Dataset:
    """Returns 300 scenes to train on, 60 to validate, and 60 to test.

    Args:
      bands: the bands of the images, of five.
    """
    splits, first = {}, 0
    for split, count in {"train": 300, "val": 60, "test": 60}.items():
        made = (scene(seed) for seed in range(first, first + count))
        splits[split] = [{"image": image[..., bands], "label": label} for image, label in made]
        first += count
    # Red, green, and blue.
    measured = measure_bands([example["image"] for example in splits["train"]], (2, 1, 0))
    return Dataset(splits, NAMES, palette=PALETTE, bands=measured, name="five bands")


def get_config(bands: str = "all") -> Config:
    """Returns the config. `bands` is "all" or "rgb"."""
    config = recipes.shapes()
    config.steps, config.eval_every = 300, 300
    config.compare.teacher_steps = 300
    config.compare.seeds = (0, 1, 2)
    config.compare.cache = True
    config.data.name = "five_bands:scenes"
    config.data.crop_size = (SIDE, SIDE)
    config.data.scale_range = (0.75, 1.5)
    config.teacher.update(network("fpn_light_r18", width=16))
    config.student.update(network("fpn_light_r18", width=8))
    if bands == "rgb":
        with config.unlocked():
            config.data.options = {"bands": VISIBLE}
    return recipes.compare_methods(config, ("plain", "dist"))
