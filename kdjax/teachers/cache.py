"""The teacher cache of a run: class scores on the training images, computed once."""

import json
import math
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.models import Variables
from kdjax.models.network import ReorderedClasses, scores_of
from kdjax.teachers import scores
from kdjax.teachers.precomputed_logits import PrecomputedLogits
from kdjax.teachers.scores import ScoreFiles, compact_scores
from kdjax.training.sharding import Placement
from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote
from kdjax.utils.lock import Lock
from kdjax.utils.log import RunLogger

FORMAT = 1  # of the files and of their meaning
PROGRESS_LINES = 10


class NetworkScores:
    """The class scores of a teacher network on the training images.

    Args:
      options: the config of the run.
      images: the images of the run.
      teacher: the teacher, from `TrainedNetwork.frozen`.

    Attributes:
      num_classes: K.
      description: identifies the teacher and its input in a cache.
    """

    def __init__(self, options: RunOptions, images: RunData, teacher: TrainedNetwork):
        self._options, self._images, self._teacher = options, images, teacher
        self._split = options.data.train_split
        self.num_classes = teacher.info.num_classes
        info, network = teacher.info, teacher.network
        self.description = {
            "teacher": f"{info.name} {info.fingerprint} in {options.teacher.dtype}",
            "preprocessing": [list(values) for values in info.preprocessing],
            "class_order": network.order if isinstance(network, ReorderedClasses) else None,
        }

    def map_sizes(self) -> np.ndarray:
        """Returns height and width of every map, int32 `[N, 2]`, from tracing the network."""
        images = self._images.sizes(self._split)
        shapes = {
            size: jax.eval_shape(
                self._of_pixels,
                self._teacher.variables,
                jax.ShapeDtypeStruct((1, *size, 3), np.uint8),
            ).shape[1:3]
            for size in set(images)
        }
        return np.array([shapes[size] for size in images], np.int32)

    def maps(self, keep: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields the index and the compact scores of every image once, in any order.

        Args:
          keep: see `kdjax.teachers.scores.compact_scores`.
        """
        options, devices = self._options, jax.local_devices()
        # Batches of the evaluation's size, on as many devices as divide it.
        count = math.gcd(options.data.eval_batch_size, len(devices))
        placement = Placement(devices=devices[:count])
        # The run's own variables may be split over the devices of all processes.
        dtype = options.teacher.dtype
        whole = TrainedNetwork.load(options.teacher.checkpoint, dtype=dtype).frozen(dtype)
        variables = placement.replicate(whole.variables)
        forward = jax.jit(lambda *given: compact_scores(self._of_pixels(*given), keep))
        for batch in self._images.whole_images(self._split):
            pixels = placement.put_images(batch["image"])
            found = jax.device_get(forward(variables, pixels))
            for row in np.flatnonzero(batch["valid"]):
                yield batch["index"][row], {name: value[row] for name, value in found.items()}

    def _of_pixels(self, variables: Variables, pixels: Any) -> jax.Array:
        teacher = self._teacher
        images = teacher.info.preprocessing(pixels)
        return scores_of(teacher.network.apply(variables, images, train=False, key=None)[0])


class TeacherCache:
    """The cache of `config.teacher.cache`. Nothing is written before `open`.

    Args:
      options: the config of the run.
      images: the images of the run.
      scores: the scores of the teacher.
      distiller: the terms, which read the teacher.
      log: the log of the run.

    Raises:
      UserError: if the cache cannot serve the run, or the directory holds something else.
    """

    def __init__(
        self,
        options: RunOptions,
        images: RunData,
        scores: NetworkScores | PrecomputedLogits,
        distiller: Distiller,
        log: RunLogger,
    ):
        if is_remote(options.teacher.cache):
            raise UserError(
                f"config.teacher.cache is {options.teacher.cache}; it is mapped into memory, so it "
                "must be a directory on a disk"
            )
        _check_terms(distiller)
        self._path = pathlib.Path(options.teacher.cache)
        self._scores = scores
        self._log = log
        self._keep = options.teacher.cache_classes
        if self._keep >= scores.num_classes:
            raise UserError(
                f"config.teacher.cache_classes is {self._keep}; the teacher scores "
                f"{scores.num_classes} classes, and 0 keeps all of them"
            )
        if options.data.mixture:
            raise UserError(
                "config.teacher.cache holds the scores of config.data.train_split alone; leave it "
                f"empty to train on config.data.mixture.{next(iter(options.data.mixture))} too"
            )
        self._description = {
            "format": FORMAT,
            **scores.description,
            "data": images.fingerprint,
            "split": options.data.train_split,
            "num_classes": scores.num_classes,
            "cache_classes": self._keep,
        }
        self._is_complete()

    def open(self) -> ScoreFiles:
        """Opens the cache, after making it if it does not exist.

        The leading process makes the cache on its own devices, while the others wait. Concurrent
        runs on one machine make it once.

        Raises:
          UserError: if the cache cannot be written, or is damaged.
        """
        processes.lead(lambda: self._is_complete() or self._make())
        if not self._is_complete():
            raise UserError(
                f"config.teacher.cache {self._path}: the leading process left no cache here; it "
                "must be on a disk that all processes share"
            )
        files = ScoreFiles(self._path, self._scores.num_classes, self._keep)
        kept = f"the {self._keep} highest scores" if self._keep else "all scores"
        self._log.info(
            f"teacher cache {self._path}: {kept} of each cell, "
            f"{files.num_bytes / 2**20:.1f} MiB; of whole images at scale 1, in their own colors"
        )
        return files

    def _is_complete(self) -> bool:
        """Returns True if the directory holds the cache, and raises if it holds something else."""
        found = scores.read_description(self._path)
        if found is None:
            if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
                raise UserError(
                    f"config.teacher.cache {self._path} holds something else than a cache; choose "
                    "a directory that is missing or empty"
                )
            return False
        differing = [
            f"{key} {found.get(key)} there, {value} now"
            for key, value in self._description.items()
            if found.get(key) != json.loads(json.dumps(value))
        ]
        if differing:
            raise UserError(
                f"config.teacher.cache {self._path} is of another run ({'; '.join(differing)}); "
                "choose another directory"
            )
        return True

    def _make(self) -> None:
        sizes, num_classes = self._scores.map_sizes(), self._scores.num_classes
        started = time.perf_counter()
        # Outside the cache, because the whole directory is renamed.
        lock = Lock(
            self._path.with_name(f".{self._path.name}.lock"),
            f"config.teacher.cache {self._path}",
            "choose another directory",
        )
        try:
            lock.acquire(patience=math.inf)
            if self._is_complete():  # made by another run in the meantime
                return
            # On a full disk, writing to a mapped file would kill the process.
            needed = scores.num_bytes(sizes, num_classes, self._keep)
            free = shutil.disk_usage(self._path.parent).free
            if free < needed:
                raise UserError(
                    f"config.teacher.cache {self._path} takes {needed / 2**20:.0f} MiB; its "
                    f"disk has {free / 2**20:.0f}. Set config.teacher.cache_classes to keep "
                    "fewer scores"
                )
            scores.write_scores(
                self._path,
                self._description,
                sizes,
                self._logged(self._scores.maps(self._keep), len(sizes)),
                num_classes=num_classes,
                keep=self._keep,
            )
        except OSError as error:
            raise UserError(
                f"cannot write config.teacher.cache {self._path}: {error.strerror}"
            ) from error
        finally:
            lock.release()
        self._log.info(f"teacher cache made in {time.perf_counter() - started:.1f} s")

    def _logged(self, maps: Iterator[Any], count: int) -> Iterator[Any]:
        """Yields the maps, and logs the progress."""
        started = time.perf_counter()
        for done, item in enumerate(maps, 1):
            yield item
            if done * PROGRESS_LINES // count > (done - 1) * PROGRESS_LINES // count:
                passed = time.perf_counter() - started
                self._log.info(f"teacher cache: {done} of {count} images, {passed:.0f} s")


def _check_terms(distiller: Distiller) -> None:
    for name, loss in distiller.terms.items():
        where = f"config.terms.{name}"
        for read in loss.names("teacher"):
            if read != "logits":
                raise UserError(
                    f'{where} reads the teacher\'s "{read}", but config.teacher.cache keeps its '
                    "class scores (logits) only; leave the cache empty"
                )
        if loss.teacher and loss.resize != "teacher":
            raise UserError(
                f'{where}.resize is "{loss.resize}", but scores from config.teacher.cache come at '
                'the student\'s size; set it to "teacher", or leave the cache empty'
            )
