"""The images of a run: its data set in the batches that training and evaluation take."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from kdjax.data import class_balance
from kdjax.data.caching import CacheDecision, decide_cache, least_memory
from kdjax.data.interface import SegmentationSet
from kdjax.data.loading import sampling
from kdjax.data.loading.sampling import AugmentOptions, ClassSampling, padded
from kdjax.data.options import CropOptions, DataOptions, ExtraSet
from kdjax.utils.classes import UNLABELLED, differing_class
from kdjax.utils.errors import UserError

SIZE_SAMPLE = 64  # examples whose sizes stand for those of all
PANEL_EXAMPLES = 4
# With this many shapes of whole images, compiling may take longer than evaluating.
MANY_SHAPES = 16
PAD_TO = 64  # the recommended padding in that case

HostBatch = Mapping[str, np.ndarray]
ClassTable = tuple[tuple[str, ...], np.ndarray]  # names, and a color for each, uint8 [K, 3]


class RunData:
    """The open data set that a config describes.

    Args:
      options: the section `config.data`.
      data: the set itself, as a `kdjax.data.Dataset`; None for the one that the config names.
      where: where `options` come from, for messages.
      classes: returns the names of the teacher's classes and their colors, which a set without
        labels has; None if there is no teacher.

    Raises:
      UserError: if the set is not prepared, lacks a split, or has no labels and no teacher.

    Attributes:
      labeled: False if the set has images alone. Labels are then 255 everywhere.
      bands: the bands of the images.
    """

    def __init__(
        self,
        options: DataOptions,
        data: SegmentationSet | None = None,
        *,
        where: str = "config.data",
        classes: Callable[[], ClassTable] | None = None,
    ):
        # Imported here because only reading data needs TensorFlow.
        from kdjax.data import sets

        self._options = options
        self._set = data or sets.open_named(
            options.name, options.data_dir, options.options, asked_by=f"{where}.name"
        )
        self.class_names = self._set.class_names
        self.palette = self._set.palette
        self.fingerprint = self._set.fingerprint
        self.bands = self._set.bands
        self.labeled = has_labels(self._set)
        if not self.labeled:
            if classes is None:
                raise UserError(
                    f"{where}: {self._set.name} in {options.data_dir} has no labels to learn from "
                    "or to evaluate on; name a labeled set there, and this one as "
                    "config.data.mixture.more = extra_set(..., labelled=False); or train with a "
                    "teacher alone, as configs/from_teacher.py does"
                )
            self.class_names, self.palette = classes()
        for key in ("train_split", "val_split"):
            self._check_split(key, self._set, "" if data else options.data_dir)
        self._test_set = self._set
        if options.test_split:
            self._test_set = self._open_test_set(where)
            self._check_split("test_split", self._test_set, "" if data else self._test_dir)

    @property
    def _test_dir(self) -> str:
        return self._options.test_data_dir or self._options.data_dir

    def _open_test_set(self, where: str) -> SegmentationSet:
        from kdjax.data import sets

        options = self._options
        if not options.test_data_dir:
            return self._set
        found = sets.open_named(
            options.name, options.test_data_dir, options.options, asked_by=f"{where}.name"
        )
        difference = differing_class(self.class_names, found.class_names, here="training")
        if has_labels(found) and difference:
            raise UserError(f"{where}.test_data_dir: its labels mean other classes ({difference})")
        check_same_bands(self._set, found, f"{where}.test_data_dir")
        return found

    def _check_split(self, key: str, data: SegmentationSet, data_dir: str) -> None:
        split = getattr(self._options, key)
        if split and split not in data.splits:
            place = f" in {data_dir}" if data_dir else ""
            raise UserError(
                f'config.data.{key} is "{split}"; {data.name}{place} has {", ".join(data.splits)}'
            )

    def labeled_split(self, split: str) -> bool:
        """Returns whether the images of a split to evaluate on have labels."""
        return has_labels(self._evaluated_set(split))

    def _evaluated_set(self, split: str) -> SegmentationSet:
        return self._test_set if split == self._options.test_split else self._set

    @property
    def num_classes(self) -> int:
        """K, without the ignore label."""
        return len(self.class_names)

    @property
    def unlabelled(self) -> list[str]:
        """The keys of the sets in `config.data.mixture` whose labels are not used."""
        return [key for key, extra in self._options.mixture.items() if not extra.labelled]

    @functools.cached_property
    def _training_sets(self) -> list[tuple[SegmentationSet, str]]:
        """The sets that training reads, in the order of their examples, each with its split."""
        found = [(self._set, self._options.train_split)]
        for key, extra in self._options.mixture.items():
            mixed = open_mixed(key, extra, self.class_names)
            check_same_bands(self._set, mixed, f"config.data.mixture.{key}")
            found.append((mixed, extra.split))
        return found

    @functools.cached_property
    def _source(self) -> Any:
        """The training examples of all sets, as a `Mixture`."""
        from kdjax.data.loading import sources

        use = [(self._options.weight, True)]
        use += [(extra.weight, extra.labelled) for extra in self._options.mixture.values()]
        return sources.Mixture(
            [
                sources.Part(data.records(split), *how)
                for (data, split), how in zip(self._training_sets, use, strict=True)
            ]
        )

    @functools.cached_property
    def _class_counts(self) -> np.ndarray:
        """The labeled pixels of each class in every training example, int64 [N, K]."""
        options, counts = self._options, []
        labelled = [self.labeled, *(extra.labelled for extra in options.mixture.values())]
        for (data, split), used in zip(self._training_sets, labelled, strict=True):
            records = data.records(split)
            counts.append(
                records.class_counts(self.num_classes)
                if used
                else np.zeros((len(records), self.num_classes), np.int64)
            )
        found = np.concatenate(counts)
        if not found.any():
            raise UserError(
                f"no pixel of the split {options.train_split} has a label; leave "
                "config.loss.class_weighting and config.data.class_uniform at their defaults"
            )
        return found

    def class_weights(
        self, weighting: Literal["inverse_frequency", "median_frequency"]
    ) -> tuple[float, ...]:
        """Returns a weight for each class; see `kdjax.data.class_balance.class_weights`."""
        return class_balance.class_weights(self._class_counts, weighting)

    @functools.cached_property
    def _by_class(self) -> ClassSampling | None:
        """The sampling of crops by class, if the config asks for it."""
        share = self._options.class_uniform
        return class_balance.class_sampling(self._class_counts, share) if share else None

    @functools.cached_property
    def cache(self) -> CacheDecision:
        """The place of decoded training examples. Every process must read this property."""
        device_bytes, host_bytes = least_memory()
        return decide_cache(
            self._options.cache,
            len(self._source),
            self._source.sample_sizes(SIZE_SAMPLE),
            pixel_bytes=np.dtype(self.bands.dtype).itemsize * self.bands.channels + 1,
            device_bytes=device_bytes,
            host_bytes=host_bytes,
        )

    @functools.cached_property
    def in_memory(self) -> Any:
        """The training examples decoded in host memory, as `InMemoryExamples`."""
        from kdjax.data.loading import sources

        source = self._source
        return sources.InMemoryExamples(
            source.decoded(), source.lengths, source.weights, bands=self.bands
        )

    def augment_options(self, *, clean_view: bool = False, place: bool = False) -> AugmentOptions:
        """Returns the augmentations in the config."""
        chosen = {
            field.name: getattr(self._options, field.name)
            for field in dataclasses.fields(CropOptions)
        }
        return AugmentOptions(**chosen, clean_view=clean_view, place=place, bands=self.bands)

    def train_batches(
        self, *, first_step: int, steps: int, seed: int, **views: bool
    ) -> Iterator[HostBatch]:
        """Returns this process's rows of the batches from `first_step` on.

        Args:
          first_step: counted from 0.
          steps: the step before which to stop.
          seed: the seed of the run.
          **views: options of `augment_options`.
        """
        from kdjax.data.loading import pipeline

        return pipeline.train_batches(
            self._source if self.cache.place == "none" else self.in_memory,
            **self._batches(first_step, steps, seed, views),
        )

    def index_batches(
        self, *, first_step: int, steps: int, seed: int, **views: bool
    ) -> Iterator[Mapping[str, Any]]:
        """Returns the indices and draws of `train_batches`, for examples on the devices."""
        batches = self._batches(first_step, steps, seed, views)
        return sampling.index_batches(self._source.lengths, self._source.weights, **batches)

    def _batches(
        self, first_step: int, steps: int, seed: int, views: Mapping[str, bool]
    ) -> dict[str, Any]:
        return {
            "batch_size": self._options.batch_size,
            "seed": seed,
            "steps": range(first_step, steps),
            "options": self.augment_options(**views),
            "by_class": self._by_class,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    def eval_batches(
        self,
        split: str,
        *,
        pad_to: int | None = None,
        exact_below: tuple[int, int] = (0, 0),
    ) -> Iterator[HostBatch]:
        """Returns every image of a split, shared by all processes.

        Args:
          split: the split.
          pad_to: an argument of `kdjax.data.loading.pipeline.eval_batches`; None for `eval_pad_to`.
          exact_below: another argument of it.
        """
        from kdjax.data.loading import pipeline

        return pipeline.eval_batches(
            self._evaluated_set(split),
            split,
            batch_size=self._options.eval_batch_size,
            pad_to=self._options.eval_pad_to if pad_to is None else pad_to,
            exact_below=exact_below,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def whole_train_images(self) -> Iterator[HostBatch]:
        """Returns every training image of all sets at its own size, all of them on this process.

        `index` counts the images of all sets, as in `train_batches`.
        """
        from kdjax.data.loading import pipeline

        first = 0
        for data, split in self._training_sets:
            for batch in pipeline.eval_batches(
                data, split, batch_size=self._options.eval_batch_size
            ):
                yield {**batch, "index": first + batch["index"]}
            first += len(data.records(split))

    def train_names(self) -> list[str]:
        """Returns the names of the training examples of all sets."""
        return [name for data, split in self._training_sets for name in data.records(split).names()]

    def train_sizes(self) -> list[tuple[int, int]]:
        """Returns height and width of the training images of all sets."""
        return [
            size
            for data, split in self._training_sets
            for size in data.records(split).sizes(range(len(data.records(split))))
        ]

    def train_fingerprints(self) -> list[tuple[str, str]]:
        """Returns the fingerprint and the split of every set that training reads."""
        return [(data.fingerprint, split) for data, split in self._training_sets]

    def test_groups(self) -> dict[str, list[int]]:
        """Returns the indices in the test split of each of `config.data.test_groups`.

        Raises:
          UserError: if an expression matches no name.
        """
        options, found = self._options, {}
        names = self.names(options.test_split) if options.test_groups else []
        for group, expression in options.test_groups.items():
            found[group] = [i for i, name in enumerate(names) if re.search(expression, name)]
            if not found[group]:
                raise UserError(
                    f'config.data.test_groups.{group} "{expression}" finds none of the '
                    f'{len(names)} names in {options.test_split}, as "{names[0]}"'
                )
        return found

    def names(self, split: str) -> list[str]:
        """Returns the names of all examples of a split."""
        return self._evaluated_set(split).records(split).names()

    def sizes(self, split: str) -> list[tuple[int, int]]:
        """Returns height and width of every image of a split."""
        examples = self._evaluated_set(split).records(split)
        return examples.sizes(range(len(examples)))

    def evaluated_sizes(self) -> list[tuple[int, int]]:
        """Returns the smallest and the largest padded size of the images to evaluate on."""
        options = self._options
        splits = filter(None, (options.val_split, options.test_split))
        sizes = {size for split in splits for size in self.sizes(split)}
        ordered = sorted({padded(size, options.eval_pad_to) for size in sizes}, key=math.prod)
        return [*dict.fromkeys(ordered[:1] + ordered[-1:])]

    def slow_evaluation(self, split: str) -> str | None:
        """Returns a warning if compiling for each size of image in a split takes long."""
        sizes = self.sizes(split)
        shapes, fewer = (
            len({padded(size, multiple) for size in sizes})
            for multiple in (self._options.eval_pad_to, PAD_TO)
        )
        if shapes <= MANY_SHAPES:
            return None
        line = (
            f"the {len(sizes)} images of {split} have {shapes} sizes, and the first evaluation "
            "compiles the network for each of them"
        )
        if fewer >= shapes:
            return line
        return (
            f"{line}; config.data.eval_pad_to={PAD_TO} reduces them to {fewer}, but changes the "
            "scores"
        )

    def panel_examples(self) -> list[dict[str, Any]]:
        """Returns a few examples of the validation split, for pictures."""
        return self.spread_examples(self._options.val_split, PANEL_EXAMPLES)

    def examples(self, split: str, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the examples at some indices of a split."""
        from kdjax.data.loading import pipeline

        return pipeline.load_examples(self._evaluated_set(split), split, indices)

    def spread_examples(self, split: str, count: int) -> list[dict[str, Any]]:
        """Returns `count` evenly spread examples of a split, or all if there are fewer."""
        last = len(self._evaluated_set(split).records(split)) - 1
        indices = np.unique(np.linspace(0, last, count).astype(int))
        return self.examples(split, indices.tolist())


def check_same_bands(main: SegmentationSet, other: SegmentationSet, where: str) -> None:
    """Requires that two sets have the same number and type of bands.

    Raises:
      UserError: if they differ. `where` names the other set.
    """
    (here, there) = (f"{data.bands.channels} of {data.bands.dtype}" for data in (main, other))
    if here != there:
        raise UserError(
            f"{where}: its images have other bands ({there}) than the main set ({here})"
        )


def has_labels(data: SegmentationSet) -> bool:
    """Returns False for a set of images alone, as `prepare folder --unlabelled` makes it."""
    return tuple(data.class_names) != (UNLABELLED,)


def open_mixed(key: str, options: ExtraSet, class_names: Sequence[str]) -> SegmentationSet:
    """Opens an additional set of a mixture.

    Args:
      key: its key in `config.data.mixture`.
      options: its entry there.
      class_names: the classes of the main set.

    Raises:
      UserError: if it is not prepared, lacks the split, or has labels of other classes.
    """
    from kdjax.data import sets

    where = f"config.data.mixture.{key}"
    extra = sets.open_named(options.name, options.data_dir, {}, asked_by=f"{where}.name")
    if options.split not in extra.splits:
        raise UserError(
            f'{where}.split is "{options.split}"; {options.name} in {options.data_dir} has '
            f"{', '.join(extra.splits)}"
        )
    difference = differing_class(class_names, extra.class_names, here="the main set")
    if options.labelled and difference:
        raise UserError(
            f"{where}: its labels mean other classes ({difference}); set {where}.labelled to False "
            "to train on its images alone"
        )
    return extra
