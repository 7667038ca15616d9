"""The images of a run: its data set, in the batches that training and evaluation take."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.config import Config
from kdjax.errors import UserError

PANEL_EXAMPLES = 4

Batch = Mapping[str, np.ndarray]


class Images:
    """An open data set as a config describes it.

    Args:
      config: the `data` part of a config.

    Raises:
      UserError: when the set is not prepared, or has no such split.
    """

    def __init__(self, config: Config):
        # Here and not above: reading data needs TensorFlow, which the rest can do without.
        from kdjax.data import sets

        self._config = config
        self._set = sets.open_set(config.name, config.data_dir)
        self.class_names = self._set.class_names
        self.palette = self._set.palette
        self.fingerprint = self._set.fingerprint
        for key in ("train_split", "val_split", "test_split"):
            split = config[key]
            if split and split not in self._set.splits:
                raise UserError(
                    f'config.data.{key} is "{split}"; {config.name} in {config.data_dir} has '
                    f"{', '.join(self._set.splits)}"
                )

    @property
    def num_classes(self) -> int:
        """K, without the ignore label."""
        return len(self.class_names)

    def train_batches(self, *, first_step: int, steps: int, seed: int) -> Iterator[Batch]:
        """The batches of the steps from `first_step` on."""
        from kdjax.data import augment, pipeline

        config = self._config
        return pipeline.train_batches(
            self._set,
            config.train_split,
            batch_size=config.batch_size,
            seed=seed,
            start_step=first_step,
            num_steps=steps,
            options=augment.AugmentOptions(
                crop_size=tuple(config.crop_size),
                scale_range=tuple(config.scale_range),
                max_class_share=config.max_class_share,
                flip=config.flip,
                photometric=config.photometric,
            ),
        )

    def eval_batches(self, split: str, *, group: str | None = None) -> Iterator[Batch]:
        """Every image of a split, or of those whose names a group's expression finds."""
        from kdjax.data import pipeline

        indices = None
        if group is not None:
            names = pipeline.example_names(self._set, split)
            expression = re.compile(self._config.test_groups[group])
            indices = [i for i, name in enumerate(names) if expression.search(name)]
            if not indices:
                raise UserError(
                    f'config.data.test_groups.{group} "{expression.pattern}" finds none of the '
                    f'{len(names)} names in {split}, as "{names[0]}"'
                )
        return pipeline.eval_batches(
            self._set, split, batch_size=self._config.eval_batch_size, indices=indices
        )

    def panel_examples(self) -> list[dict[str, Any]]:
        """A few examples spread over the validation split, for pictures."""
        from kdjax.data import pipeline

        split = self._config.val_split
        count = self._set.splits[split]
        indices = np.unique(np.linspace(0, count - 1, PANEL_EXAMPLES).astype(int))
        return pipeline.load_examples(self._set, split, indices.tolist())
