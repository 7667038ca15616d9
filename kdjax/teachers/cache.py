"""The teacher cache of a run: the teacher's maps of the training images, computed once."""

import json
import math
import pathlib
import shutil
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller
from kdjax.teachers.compression import Compression
from kdjax.teachers.map_files import MapFiles, MapWriter, read_description, unfinished_bytes
from kdjax.teachers.network_maps import ImageMaps, NetworkMaps
from kdjax.teachers.precomputed_logits import PrecomputedLogits
from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote
from kdjax.utils.lock import Lock
from kdjax.utils.log import RunLogger

FORMAT = 2  # of the files and of their meaning
PROGRESS_LINES = 10


class OpenCache(NamedTuple):
    """An open cache.

    Attributes:
      maps: the files of each map, by the map's name.
      grids: height and width of the maps of features on a crop, by name.
      num_bytes: the size on disk.
      seconds: the time that it took to make the maps, in whichever run.
    """

    maps: Mapping[str, MapFiles]
    grids: Mapping[str, tuple[int, int]]
    num_bytes: int
    seconds: float

    def rows(self, indices: Any) -> dict[str, dict[str, np.ndarray]]:
        """Reads the compressed maps of the images at `indices`; see `MapFiles.rows`."""
        return {name: files.rows(indices) for name, files in self.maps.items()}


class TeacherCache:
    """The cache of `config.teacher.cache`. Nothing is written before `open`.

    Each map has a folder of its own, so that runs whose terms read different maps share a cache.

    Args:
      options: the config of the run.
      images: the images of the run.
      maps: the maps of the teacher.
      distiller: the terms, which read the teacher.
      log: the log of the run.

    Raises:
      UserError: if the cache cannot serve the run, or the directory holds something else.
    """

    def __init__(
        self,
        options: RunOptions,
        images: RunData,
        maps: NetworkMaps | PrecomputedLogits,
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
        self._maps = maps
        self._log = log
        self._compressions = maps.compressions()
        for form in self._compressions.values():
            if form.scores and form.keep >= form.channels:
                raise UserError(
                    f"config.teacher.cache_classes is {form.keep}; the teacher scores "
                    f"{form.channels} classes, and 0 keeps all of them"
                )
        shared = {"format": FORMAT, **maps.description, "data": images.train_fingerprints()}
        self._descriptions = {
            name: {**shared, "map": name, **_form(form)}
            for name, form in self._compressions.items()
        }
        self._missing()

    def open(self) -> OpenCache:
        """Opens the cache, after making the maps that it lacks.

        The leading process makes them on its own devices, while the others wait. Concurrent runs
        on one machine make them once.

        Raises:
          UserError: if the cache cannot be written, or is damaged.
        """
        processes.lead(lambda: self._missing() and self._make())
        if self._missing():
            raise UserError(
                f"config.teacher.cache {self._path}: the leading process left no cache here; it "
                "must be on a disk that all processes share"
            )
        files = {
            name: MapFiles(self._folder(name), form) for name, form in self._compressions.items()
        }
        seconds = max((read_description(self._folder(name)) or {})["seconds"] for name in files)
        found = OpenCache(
            files, self._maps.grids(), sum(map.num_bytes for map in files.values()), seconds
        )
        kept = ", ".join(_in_words(name, form) for name, form in self._compressions.items())
        self._log.info(
            f"teacher cache {self._path}: {kept}, {found.num_bytes / 2**20:.1f} MiB, made in "
            f"{seconds:.1f} s; of whole images at scale 1, in their own colors"
        )
        return found

    def _folder(self, name: str) -> pathlib.Path:
        return self._path / urllib.parse.quote(name, safe="")

    def _missing(self) -> list[str]:
        """Returns the maps that the cache lacks, and raises if the directory has other content."""
        if self._path.exists() and not self._path.is_dir():
            raise UserError(f"config.teacher.cache {self._path} is a file; name a directory")
        others = [
            path
            for path in (self._path.iterdir() if self._path.exists() else ())
            if not path.name.startswith(".") and read_description(path) is None
        ]
        if others:
            raise UserError(
                f"config.teacher.cache {self._path} holds something else than a cache, such as "
                f"{others[0].name}; choose a directory that is missing or empty"
            )
        return [name for name in self._compressions if not self._is_complete(name)]

    def _is_complete(self, name: str) -> bool:
        found = read_description(self._folder(name))
        if found is None:
            return False
        differing = [
            f"{key} {found.get(key)} there, {value} now"
            for key, value in self._descriptions[name].items()
            if found.get(key) != json.loads(json.dumps(value))
        ]
        if differing:
            raise UserError(
                f"config.teacher.cache {self._path} is of another run ({'; '.join(differing)}); "
                "choose another directory"
            )
        return True

    def _make(self) -> None:
        # Outside the cache, so that the directory holds nothing but maps.
        lock = Lock(
            self._path.with_name(f".{self._path.name}.lock"),
            f"config.teacher.cache {self._path}",
            "choose another directory",
        )
        try:
            lock.acquire(patience=math.inf)
            if missing := self._missing():  # else another run made them in the meantime
                self._path.mkdir(parents=True, exist_ok=True)
                self._write(missing)
        except OSError as error:
            raise UserError(
                f"cannot write config.teacher.cache {self._path}: {error.strerror}"
            ) from error
        finally:
            lock.release()

    def _write(self, missing: list[str]) -> None:
        sizes = self._maps.map_sizes()
        needed = sum(self._compressions[name].num_bytes(sizes[name]) for name in missing)
        self._log.info(
            f"teacher cache: the teacher's {', '.join(missing)} of {len(sizes[missing[0]])} images "
            f"take {needed / 2**20:.1f} MiB in {self._path}"
        )
        # On a full disk, writing to a mapped file would kill the process.
        free = shutil.disk_usage(self._path).free
        free += sum(unfinished_bytes(self._folder(name)) for name in missing)
        if free < needed:
            raise UserError(
                f"config.teacher.cache {self._path} takes {needed / 2**20:.0f} MiB; its disk has "
                f"{free / 2**20:.0f}. Set config.teacher.cache_classes to keep fewer scores, or "
                'config.teacher.cache_features to "int8" to keep smaller features'
            )
        started = time.perf_counter()
        writers = {
            name: MapWriter(
                self._folder(name),
                self._descriptions[name],
                sizes[name],
                self._compressions[name],
            )
            for name in missing
        }
        done = np.all([writer.done for writer in writers.values()], axis=0)
        if earlier := int(done.sum()):
            self._log.info(f"teacher cache: continues after {earlier} images")
        stored = {name: self._compressions[name] for name in missing}
        for index, maps in self._logged(self._maps.maps(stored, done), len(done) - earlier):
            for name, writer in writers.items():
                writer.write(index, maps[name])
        for writer in writers.values():
            writer.finish(seconds=time.perf_counter() - started)

    def _logged(
        self, maps: Iterator[tuple[int, ImageMaps]], count: int
    ) -> Iterator[tuple[int, ImageMaps]]:
        """Yields the maps, and logs the progress."""
        started = time.perf_counter()
        for done, item in enumerate(maps, 1):
            yield item
            if done * PROGRESS_LINES // count > (done - 1) * PROGRESS_LINES // count:
                passed = time.perf_counter() - started
                self._log.info(f"teacher cache: {done} of {count} images, {passed:.0f} s")


def _form(form: Compression) -> dict[str, Any]:
    """Returns the part of a description that says how a map is stored."""
    kept = {"cache_classes": form.keep} if form.scores else {"cache_features": form.features}
    return {"channels": form.channels, **kept}


def _in_words(name: str, form: Compression) -> str:
    if not form.scores:
        return f'"{name}" with {form.channels} channels in {form.features}'
    return f"the {form.keep} highest scores" if form.keep else "all scores"


def _check_terms(distiller: Distiller) -> None:
    for name, loss in distiller.terms.items():
        if "logits" in loss.names("teacher") and "logits" not in distiller.maps("student"):
            raise UserError(
                f"config.terms.{name} reads the teacher's class scores, which come from "
                "config.teacher.cache at the size of the student's, but the student has none; "
                "leave the cache empty"
            )
        if "logits" in loss.names("teacher") and loss.resize != "teacher":
            raise UserError(
                f'config.terms.{name}.resize is "{loss.resize}", but scores from '
                'config.teacher.cache come at the student\'s size; set it to "teacher", or leave '
                "the cache empty"
            )
