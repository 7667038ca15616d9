"""The cache of a run's teacher: its class scores on the training images, computed once."""

import json
import math
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from kdjax.config import RunOptions
from kdjax.data.images import Images
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.models import Variables
from kdjax.models.network import ReorderedClasses, scores_of
from kdjax.teachers import scores
from kdjax.teachers.scores import ScoreFiles, compact_scores
from kdjax.training.sharding import Placement
from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote
from kdjax.utils.lock import Lock
from kdjax.utils.log import RunLogger

FORMAT = 1  # of the files, and of what they mean
PROGRESS_LINES = 10


class TeacherScores(Protocol):
    """Class scores of a teacher on the training images, as a cache is made from them.

    Attributes:
      num_classes: K.
      description: which teacher it is, and what it was shown.
    """

    @property
    def num_classes(self) -> int: ...  # noqa: D102

    @property
    def description(self) -> Mapping[str, Any]: ...  # noqa: D102

    def map_sizes(self) -> np.ndarray:
        """Height and width of the scores of every image, int32 `[N, 2]`."""
        ...

    def maps(self, keep: int) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Index and compact scores of every image once, in any order.

        Args:
          keep: as `kdjax.teachers.scores.compact_scores` takes it.
        """
        ...


class TeacherCache:
    """What `config.teacher.cache` asks for; nothing is written before `open`.

    Args:
      options: of the run.
      images: its images.
      scores: what the teacher says of them.
      distiller: the terms, which read the teacher.
      log: of the run.

    Raises:
      UserError: the cache cannot serve the run, or the directory holds another.
    """

    def __init__(
        self,
        options: RunOptions,
        images: Images,
        scores: TeacherScores,
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
        self._num_classes = scores.num_classes
        self._keep = options.teacher.cache_classes
        if self._keep >= self._num_classes:
            raise UserError(
                f"config.teacher.cache_classes is {self._keep}; the teacher scores "
                f"{self._num_classes} classes, and 0 keeps all of them"
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
            "num_classes": self._num_classes,
            "cache_classes": self._keep,
        }
        self._complete()

    def open(self) -> ScoreFiles:
        """Opens the cache, and makes it before where it is missing.

        Of several processes the leading one makes it, on its own devices, while the others wait.
        Runs at once on one machine make it once.

        Raises:
          UserError: it cannot be written, or is damaged.
        """
        processes.lead(lambda: self._complete() or self._make())
        if not self._complete():
            raise UserError(
                f"config.teacher.cache {self._path}: the leading process left no cache here; it "
                "must be on a disk that all processes share"
            )
        files = ScoreFiles(self._path, self._num_classes, self._keep)
        kept = f"the {self._keep} highest scores" if self._keep else "all scores"
        self._log.info(
            f"teacher cache {self._path}: {kept} of each cell, "
            f"{files.num_bytes / 2**20:.1f} MiB; of whole images at scale 1, in their own colours"
        )
        return files

    def _complete(self) -> bool:
        """Whether the directory holds the cache; raises where it holds something else."""
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
        sizes = self._scores.map_sizes()
        needed = scores.num_bytes(sizes, self._num_classes, self._keep)
        started = time.perf_counter()
        # A file beside the cache, since the cache comes by a rename.
        lock = Lock(
            self._path.with_name(f".{self._path.name}.lock"),
            f"config.teacher.cache {self._path}",
            "choose another directory",
        )
        try:
            lock.acquire(patience=math.inf)
            if self._complete():  # another run made it meanwhile
                return
            # Writing to mapped files beyond the disk's end would kill the process.
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
                _told(self._scores.maps(self._keep), len(sizes), self._log),
                num_classes=self._num_classes,
                keep=self._keep,
            )
        except OSError as error:
            raise UserError(
                f"cannot write config.teacher.cache {self._path}: {error.strerror}"
            ) from error
        finally:
            lock.release()
        self._log.info(f"teacher cache made in {time.perf_counter() - started:.1f} s")


class NetworkScores:
    """What a teacher network says of the training images.

    Args:
      options: of the run.
      images: its images.
      teacher: its teacher, as `TrainedNetwork.frozen` makes it.
    """

    def __init__(self, options: RunOptions, images: Images, teacher: TrainedNetwork):
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
        """As `TeacherScores` has it, by tracing the network."""
        images = self._images.sizes(self._split)
        variables = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._teacher.variables
        )
        shapes = {
            size: jax.eval_shape(
                self._scores, variables, jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
            ).shape[1:3]
            for size in set(images)
        }
        return np.array([shapes[size] for size in images], np.int32)

    def maps(self, keep: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """As `TeacherScores` has it."""
        options, devices = self._options, jax.local_devices()
        # The batches of evaluation, on as many devices as divide them.
        count = math.gcd(options.data.eval_batch_size, len(devices))
        placement = Placement(devices=devices[:count])
        # Those of the run may be split over the devices of all processes.
        dtype = options.teacher.dtype
        whole = TrainedNetwork.load(options.teacher.checkpoint, dtype=dtype).frozen(dtype)
        variables = placement.replicate(whole.variables)
        forward = jax.jit(lambda *given: compact_scores(self._scores(*given), keep))
        for batch in self._images.whole_images(self._split):
            pixels = placement.put_images(batch["image"])
            found = jax.device_get(forward(variables, pixels))
            for row in np.flatnonzero(batch["valid"]):
                yield batch["index"][row], {name: value[row] for name, value in found.items()}

    def _scores(self, variables: Variables, pixels: Any) -> jax.Array:
        teacher = self._teacher
        images = teacher.info.preprocessing(pixels)
        return scores_of(teacher.network.apply(variables, images, train=False, key=None)[0])


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


def _told(maps: Iterator[Any], count: int, log: RunLogger) -> Iterator[Any]:
    """Logs how far it is."""
    started = time.perf_counter()
    marks = {-(-count * part // PROGRESS_LINES) for part in range(1, PROGRESS_LINES + 1)}
    for done, item in enumerate(maps, 1):
        yield item
        if done in marks:
            passed = time.perf_counter() - started
            log.info(f"teacher cache: {done} of {count} images, {passed:.0f} s")
