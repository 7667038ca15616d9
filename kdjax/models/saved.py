"""Network checkpoints: one network with all that is needed to run it, and nothing of its training.

DIR/network.json    name, classes, preprocessing, where it comes from; written last
DIR/parameters/     parameters and running statistics, by Orbax
"""

import contextlib
import dataclasses
import hashlib
import json
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from orbax.checkpoint.options import MultiprocessingOptions

from kdjax.errors import UserError
from kdjax.models.keys import traced_rngs
from kdjax.models.preprocessing import IMAGENET, Preprocessing
from kdjax.models.registry import create
from kdjax.models.segmenter import Segmenter
from kdjax.paths import absolute, check_folder, is_remote, reachable, why_unwritable

FORMAT = 2  # of network.json and of how parameters are named
CHANNEL_ORDER = "RGB"
MAX_REASON = 160  # characters
UNDO_TRIES, UNDO_SECONDS = 10, 0.3
_UNFINISHED = ".kdjax-unfinished-"
_MARK = {"kdjax": "network"}  # what tells our parameters from those of anybody else


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """What describes a network beside its weights.

    Attributes:
      name: the name in the registry.
      num_classes: number of class scores per pixel.
      width: channels of the first stage.
      auxiliary: whether it has its auxiliary head.
      class_names: a name per class.
      palette: an RGB colour per class.
      preprocessing: how pixels become its input.
      channel_order: of the images that it reads and of `preprocessing`: "RGB", for all of kdjax.
      source: where the weights come from, in words.
      fingerprint: hash of the weights; set when they are saved.
    """

    name: str
    num_classes: int
    width: int
    auxiliary: bool
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]
    preprocessing: Preprocessing = IMAGENET
    channel_order: str = CHANNEL_ORDER
    source: str = ""
    fingerprint: str = ""

    def create(self, *, dtype: str, rngs: nnx.Rngs) -> Segmenter:
        """Creates the network with fresh parameters."""
        return create(
            self.name,
            num_classes=self.num_classes,
            width=self.width,
            auxiliary=self.auxiliary,
            dtype=dtype,
            rngs=rngs,
        )


def fingerprint(state: Any) -> str:
    """Returns a hash of all arrays of a pytree, in its order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def save(path: epath.PathLike, info: NetworkInfo, state: nnx.State) -> NetworkInfo:
    """Writes a network checkpoint, replacing one that is there; returns its info with fingerprint.

    Among several processes one alone writes it, from arrays that it has whole. On a local disk the
    checkpoint that is there is kept until the new one is whole.

    Args:
      path: the directory.
      info: what describes the network.
      state: what `nnx.state(net)` holds; random state, which only training draws from, is left out.

    Raises:
      UserError: when it cannot be written, or something else would be replaced.
    """
    directory = check_output(path)
    state = jax.device_get(nnx.filter_state(state, nnx.Not(nnx.RngState)))
    info = dataclasses.replace(info, fingerprint=fingerprint(state))
    values = {"format": FORMAT, **dataclasses.asdict(info)}
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    try:
        _write(directory, nnx.to_pure_dict(state), text)
    # Every client of an object store has errors of its own; TensorStore's are ValueErrors.
    except Exception as error:
        if not is_remote(directory) and not isinstance(error, (OSError, ValueError)):
            raise
        raise UserError(f"cannot write {directory}: {why_unwritable(error)}") from error
    return info


def check_output(path: epath.PathLike) -> epath.Path:
    """Returns a directory that `save` may write to: it has nothing that `save` did not write.

    Raises:
      UserError: when it has, when it is no directory and can be none, or its store does not answer.
    """
    directory = reachable(path)
    if not is_remote(directory):
        check_folder(directory)
    for name in ("network.json", "parameters"):
        if (directory / name).exists() and not _is_ours(directory):
            raise UserError(
                f"{directory / name} is there and is not that of a network checkpoint; choose "
                "another folder"
            )
    return directory


def _is_ours(directory: epath.Path) -> bool:
    """Whether `network.json` and `parameters` are those of a network checkpoint, or of its rest."""
    description = directory / "network.json"
    if description.exists():
        with contextlib.suppress(ValueError):
            values = json.loads(description.read_text())
            return isinstance(values, dict) and "fingerprint" in values
        return False
    # What was written before its description, and then stopped.
    try:
        with _checkpointer() as checkpointer:
            metadata = checkpointer.metadata(absolute(directory / "parameters"))
    except Exception:  # Whatever Orbax says of what is no checkpoint.
        return False
    return _MARK.items() <= (metadata.custom_metadata or {}).items()


def _write(directory: epath.Path, state: Any, description: str) -> None:
    parameters, described = directory / "parameters", directory / "network.json"
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    if is_remote(directory):
        # Without network.json the directory is no checkpoint: a cut write is never taken for one.
        described.unlink(missing_ok=True)
        with _checkpointer() as checkpointer:
            checkpointer.save(absolute(parameters), state, force=True, custom_metadata=_MARK)
        described.write_text(description)
        return
    new = directory / f"{_UNFINISHED}parameters"
    new_description = directory / f"{_UNFINISHED}network.json"
    try:
        _remove_unfinished(directory)  # of a process that was killed
        with _checkpointer() as checkpointer:
            checkpointer.save(absolute(new), state, custom_metadata=_MARK)
        new_description.write_text(description)
        # Between these, the old description does not fit the weights, which `load` notices.
        if parameters.exists():
            parameters.rmtree()
        new.rename(parameters)
        new_description.replace(described)
    except BaseException:
        _undo(directory, made=made)
        raise


def _undo(directory: epath.Path, *, made: bool) -> None:
    """Removes what was begun; never an error, which would hide the one that led here."""
    for _ in range(UNDO_TRIES):
        # epath's errors are of many kinds.
        with contextlib.suppress(Exception):
            _remove_unfinished(directory)
            if made and directory.exists():
                directory.rmdir()
        # Threads of Orbax that were at work when it gave up may make it anew.
        time.sleep(UNDO_SECONDS)
        if not (directory.exists() if made else any(directory.glob(f"{_UNFINISHED}*"))):
            return


def _remove_unfinished(directory: epath.Path) -> None:
    """Also the folders in which Orbax had begun, whose names begin as the finished one's."""
    for path in directory.glob(f"{_UNFINISHED}*"):
        path.rmtree() if path.is_dir() else path.unlink()


def load(
    path: epath.PathLike, *, dtype: str = "float32", seed: int = 0
) -> tuple[Segmenter, NetworkInfo]:
    """Reads a network checkpoint, or the student of a finished run when given its workdir.

    Args:
      path: a network checkpoint, or a workdir that holds one as `student/`.
      dtype: compute dtype of the network.
      seed: of the random state of modules that have their own, as `nnx.Dropout(0.1, rngs=rngs)`.

    Raises:
      UserError: when there is none, it is damaged, or its store does not answer.
    """
    directory = _find(path)
    if directory is None:
        raise UserError(
            f"{path}: no network checkpoint here (expected network.json, or the student/ of a "
            "finished run)"
        )
    info = _read_info(directory / "network.json")

    def create() -> Segmenter:
        return info.create(dtype=dtype, rngs=traced_rngs(seed))

    graphdef, random, abstract = nnx.split(nnx.eval_shape(create), nnx.RngState, ...)
    if random:
        random = jax.jit(lambda: nnx.state(create(), nnx.RngState))()
    try:
        with _checkpointer() as checkpointer:
            values = checkpointer.restore(
                absolute(directory / "parameters"), nnx.to_pure_dict(abstract)
            )
    except Exception as error:
        # Orbax may name every array of the tree in one line.
        reason = textwrap.shorten(str(error).partition("\n")[0], MAX_REASON, placeholder=" ...")
        raise UserError(f"{directory}: the network checkpoint is damaged: {reason}") from error
    if fingerprint(values) != info.fingerprint:
        raise UserError(f"{directory}: the weights are not those that network.json describes")
    nnx.replace_by_pure_dict(abstract, jax.tree.map(jnp.asarray, values))
    return nnx.merge(graphdef, random, abstract), info


def info_in(path: epath.PathLike) -> NetworkInfo | None:
    """What describes the network that `load` would read, None where there is none.

    Raises:
      UserError: when its description is damaged, or its store does not answer.
    """
    directory = _find(path)
    return None if directory is None else _read_info(directory / "network.json")


def fingerprint_in(path: epath.PathLike) -> str | None:
    """The fingerprint of the network that `load` would read, as `info_in` finds it."""
    info = info_in(path)
    return info and info.fingerprint


def _find(path: epath.PathLike) -> epath.Path | None:
    """The directory of the network checkpoint in `path`, or of the student in a workdir."""
    directory = reachable(path)
    for place in (directory, directory / "student"):
        if (place / "network.json").exists():
            return place
    return None


def _checkpointer() -> ocp.StandardCheckpointer:
    """One that waits for no other process."""
    process = jax.process_index()
    alone = MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"network{process}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _read_info(path: epath.Path) -> NetworkInfo:
    try:
        values = json.loads(path.read_text())
        if values.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of kdjax")
        if values.get("channel_order", CHANNEL_ORDER) != CHANNEL_ORDER:
            raise UserError(
                f"{path}: channel_order is not {CHANNEL_ORDER}, which all networks read"
            )
        values["preprocessing"] = Preprocessing(*map(tuple, values["preprocessing"]))
        values["class_names"] = tuple(values["class_names"])
        values["palette"] = tuple(map(tuple, values["palette"]))
        return NetworkInfo(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}") from error
