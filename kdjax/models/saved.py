"""Network checkpoints: one network with all that is needed to run it, and nothing of its training.

DIR/network.json    name, classes, preprocessing, where it comes from; written last
DIR/parameters/     parameters and running statistics, by Orbax
"""

import dataclasses
import hashlib
import json
import textwrap
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
from kdjax.paths import absolute, reachable

FORMAT = 2  # of network.json and of how parameters are named
CHANNEL_ORDER = "RGB"
MAX_REASON = 160  # characters


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

    Among several processes one alone writes it, from arrays that it has whole.

    Args:
      path: the directory.
      info: what describes the network.
      state: its parameters and running statistics, as `nnx.state(net)` holds them.
    """
    directory = epath.Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    # Without network.json the directory is no checkpoint, so a cut write is never taken for one.
    (directory / "network.json").unlink(missing_ok=True)
    state = jax.device_get(state)
    info = dataclasses.replace(info, fingerprint=fingerprint(state))
    with _checkpointer() as checkpointer:
        checkpointer.save(absolute(directory / "parameters"), nnx.to_pure_dict(state), force=True)
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(info)}, indent=2)
    (directory / "network.json").write_text(text + "\n")
    return info


def load(path: epath.PathLike, *, dtype: str = "float32") -> tuple[Segmenter, NetworkInfo]:
    """Reads a network checkpoint, or the student of a finished run when given its workdir.

    Args:
      path: a network checkpoint, or a workdir that holds one as `student/`.
      dtype: compute dtype of the network.

    Raises:
      UserError: when there is none, it is damaged, or its store does not answer.
    """
    directory = reachable(path)
    if not (directory / "network.json").exists():
        if not (directory / "student" / "network.json").exists():
            raise UserError(
                f"{path}: no network checkpoint here (expected network.json, or the student/ of a "
                "finished run)"
            )
        directory = directory / "student"
    info = _read_info(directory / "network.json")
    net = nnx.eval_shape(lambda: info.create(dtype=dtype, rngs=traced_rngs(0)))
    graphdef, abstract = nnx.split(net)
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
    return nnx.merge(graphdef, abstract), info


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
