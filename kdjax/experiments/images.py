"""The images of a run: its data set, in the batches that training and evaluation take."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdjax.classes import differing_class
from kdjax.config import Config
from kdjax.data import device_batches
from kdjax.data.augmentation import AugmentOptions
from kdjax.data.evaluation_plan import count_shapes
from kdjax.data.interface import SegmentationSet
from kdjax.errors import UserError
from kdjax.experiments import caching

# Examples whose size is looked at to know what all of them take.
SIZE_SAMPLE = 64
PANEL_EXAMPLES = 4
# From so many shapes of whole images on, compiling may take longer than evaluating.
MANY_SHAPES = 16
PAD_TO = 64  # what is recommended then

Batch = Mapping[str, np.ndarray]


class Images:
    """An open data set as a config describes it.

    Args:
      config: the `data` part of a config.
      data: the set itself, as a `kdjax.data.Dataset`; None for the one that the config names.
      where: what holds `config`, for messages.

    Raises:
      UserError: when the set is not prepared, or has no such split.
    """

    def __init__(
        self, config: Config, data: SegmentationSet | None = None, *, where: str = "config.data"
    ):
        # Here and not above: reading data needs TensorFlow, which the rest can do without.
        from kdjax.data import sets

        self._config = config
        self._set = data or sets.open_named(
            config.name, config.data_dir, config.options, asked_by=f"{where}.name"
        )
        self.class_names = self._set.class_names
        self.palette = self._set.palette
        self.fingerprint = self._set.fingerprint
        for key in ("train_split", "val_split", "test_split"):
            split = config[key]
            if split and split not in self._set.splits:
                place = "" if data else f" in {config.data_dir}"
                raise UserError(
                    f'config.data.{key} is "{split}"; {self._set.name}{place} has '
                    f"{', '.join(self._set.splits)}"
                )

    @property
    def num_classes(self) -> int:
        """K, without the ignore label."""
        return len(self.class_names)

    @functools.cached_property
    def _source(self) -> Any:
        """The training examples of all sets, labels of the others checked against the main one."""
        from kdjax.data import mixture

        config = self._config
        parts = [mixture.Part(self._set.records(config.train_split), config.weight)]
        for label, entry in config.mixture.items():
            extra = open_mixed(label, entry, self.class_names)
            parts.append(mixture.Part(extra.records(entry.split), entry.weight, entry.labelled))
        return mixture.Mixture(parts)

    @functools.cached_property
    def cache(self) -> caching.Choice:
        """Where the decoded training examples are kept."""
        return caching.choose(
            self._config.cache,
            len(self._source),
            self._source.sample_sizes(SIZE_SAMPLE),
            device_bytes=caching.device_bytes(),
            host_bytes=caching.host_bytes(),
        )

    @functools.cached_property
    def held(self) -> Any:
        """The training examples in host memory, decoded once: a `kdjax.data.held.HeldExamples`."""
        from kdjax.data import held

        source = self._source
        return held.HeldExamples(source.decoded(), source.lengths, source.weights)

    def augment_options(self, *, clean_view: bool = False, place: bool = False) -> AugmentOptions:
        """What the config does to a training example."""
        config = self._config
        return AugmentOptions(
            crop_size=tuple(config.crop_size),
            scale_range=tuple(config.scale_range),
            base_size=tuple(config.base_size),
            max_class_share=config.max_class_share,
            flip=config.flip,
            photometric=config.photometric,
            clean_view=clean_view,
            place=place,
        )

    def train_batches(
        self, *, first_step: int, steps: int, seed: int, **views: bool
    ) -> Iterator[Batch]:
        """This process's rows of the batches of the steps from `first_step` on.

        Args:
          first_step: counted from 0.
          steps: the step before which to stop.
          seed: of the run.
          **views: as `augment_options` takes them.
        """
        from kdjax.data import pipeline

        return pipeline.train_batches(
            self._source if self.cache.place == "none" else self.held,
            batch_size=self._config.batch_size,
            seed=seed,
            start_step=first_step,
            num_steps=steps,
            options=self.augment_options(**views),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def index_batches(
        self, *, first_step: int, steps: int, seed: int, **views: bool
    ) -> Iterator[Mapping[str, Any]]:
        """As `train_batches`, for examples that lie on the devices: their indices and draws."""
        return device_batches.index_batches(
            self._source.lengths,
            self._source.weights,
            batch_size=self._config.batch_size,
            seed=seed,
            start_step=first_step,
            num_steps=steps,
            options=self.augment_options(**views),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def eval_batches(
        self,
        split: str,
        *,
        group: str | None = None,
        pad_to: int | None = None,
        exact_below: tuple[int, int] = (0, 0),
    ) -> Iterator[Batch]:
        """Every image of a split, or of those whose names a group's expression finds.

        Args:
          split: which split.
          group: a name in `config.data.test_groups`.
          pad_to: as `kdjax.data.pipeline.eval_batches` takes it; None for `eval_pad_to`.
          exact_below: likewise.
        """
        from kdjax.data import pipeline

        indices = None
        if group is not None:
            names = self.names(split)
            expression = re.compile(self._config.test_groups[group])
            indices = [i for i, name in enumerate(names) if expression.search(name)]
            if not indices:
                raise UserError(
                    f'config.data.test_groups.{group} "{expression.pattern}" finds none of the '
                    f'{len(names)} names in {split}, as "{names[0]}"'
                )
        return pipeline.eval_batches(
            self._set,
            split,
            batch_size=self._config.eval_batch_size,
            indices=indices,
            pad_to=self._config.eval_pad_to if pad_to is None else pad_to,
            exact_below=exact_below,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def whole_images(self, split: str) -> Iterator[Batch]:
        """Every image of a split at its own size, all of them on this process."""
        from kdjax.data import pipeline

        return pipeline.eval_batches(self._set, split, batch_size=self._config.eval_batch_size)

    def names(self, split: str) -> list[str]:
        """The names of all examples of a split, by index."""
        return self._set.records(split).names()

    def sizes(self, split: str) -> list[tuple[int, int]]:
        """Height and width of every image of a split."""
        examples = self._set.records(split)
        return examples.sizes(range(len(examples)))

    def describe_evaluation(self, split: str) -> str:
        """A line on the shapes that evaluating a split compiles, and what would make them fewer."""
        sizes = self.sizes(split)
        shapes = count_shapes(sizes, self._config.eval_pad_to)
        line = f"evaluation of {split}: {len(sizes)} images of {shapes} shapes, each compiled once"
        fewer = count_shapes(sizes, PAD_TO)
        if shapes <= MANY_SHAPES or fewer >= shapes:
            return line
        return (
            f"{line}; config.data.eval_pad_to={PAD_TO} would make them {fewer}, at scores that are "
            "not those of exact sizes"
        )

    def panel_examples(self) -> list[dict[str, Any]]:
        """A few examples spread over the validation split, for pictures."""
        from kdjax.data import pipeline

        split = self._config.val_split
        count = len(self._set.records(split))
        indices = np.unique(np.linspace(0, count - 1, PANEL_EXAMPLES).astype(int))
        return pipeline.load_examples(self._set, split, indices.tolist())


def open_mixed(label: str, entry: Config, class_names: Sequence[str]) -> SegmentationSet:
    """Opens a further set of a mixture.

    Args:
      label: its key in `config.data.mixture`.
      entry: as `kdjax.config.extra_set` makes it.
      class_names: those of the main set.

    Raises:
      UserError: when it is not prepared, has no such split, or labels other classes.
    """
    from kdjax.data import sets

    where = f"config.data.mixture.{label}"
    extra = sets.open_named(entry.name, entry.data_dir, {}, asked_by=f"{where}.name")
    if entry.split not in extra.splits:
        raise UserError(
            f'{where}.split is "{entry.split}"; {entry.name} in {entry.data_dir} has '
            f"{', '.join(extra.splits)}"
        )
    difference = differing_class(class_names, extra.class_names, here="the main set")
    if entry.labelled and difference:
        raise UserError(
            f"{where}: its labels mean other classes ({difference}); set {where}.labelled to False "
            "to train on its images alone"
        )
    return extra
