"""Data of your own, as a source: an object with a length that returns a mapping for an index.

    python -m kdjax train --config examples/own_data.py --workdir runs/own_data

The config names the function `discs` in this module. kdjax finds modules next to the config, and
here the module is the config itself. Elsewhere, set PYTHONPATH to the module's folder.
"""

import numpy as np

from kdjax import config as configuration
from kdjax.config import Config
from kdjax.data import Dataset

SIZE = 64


class Discs:
    """Generated images: a bright disc or square on a dark background, with noise."""

    def __init__(self, count, seed):
        self._count, self._seed = count, seed

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        # An index always returns the same example. Training augments it.
        generator = np.random.default_rng([self._seed, index])
        radius, value = generator.integers(8, 20), generator.integers(1, 3)
        rows, columns = np.abs(np.indices((SIZE, SIZE)) - generator.integers(20, 44, (2, 1, 1)))
        distance = np.hypot(rows, columns) if value == 1 else np.maximum(rows, columns)
        mask = np.where(distance < radius, value, 0)
        pixels = 60 + 100 * (mask[..., None] > 0) + generator.normal(0, 20, (SIZE, SIZE, 3))
        # The outline belongs to neither class: 9 stands for unlabeled pixels.
        mask[np.abs(distance - radius) < 1] = 9
        return {"photo": pixels.clip(0, 255).astype(np.uint8), "mask": mask, "file": f"{index}.jpg"}


def discs(train=256, val=32):
    """Returns the data set. `config.data.options` are the arguments."""
    return Dataset(
        {"train": Discs(train, seed=0), "val": Discs(val, seed=1)},
        ["ground", "disc", "square"],
        image="photo",
        label="mask",
        example_name="file",
        label_ids={0: 0, 1: 1, 2: 2, 9: 255},
        name="own_data:discs",
    )


def get_config() -> Config:
    """Returns the config of a small student, which learns in seconds."""
    config = configuration.default()
    config.data.name = "own_data:discs"
    with config.unlocked():
        config.data.options.train = 128
    config.data.crop_size = (SIZE, SIZE)
    config.student.width = 16
    config.steps = 200
    config.eval_every = 100
    return config
