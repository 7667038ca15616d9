"""Network checkpoints: a network with everything that is needed to run it.

DIR/network.json         name, classes, preprocessing, source, and the folder in use
DIR/parameters/          parameters and running statistics by their paths, written by Orbax
DIR/second_parameters/   the same, if the checkpoint replaced another one

To replace a checkpoint, `save` writes the folder that is not in use, and then `network.json`, which
names the folder. If the process is killed, the old or the new checkpoint remains.
"""

import dataclasses
import hashlib
import json
import os
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.options import MultiprocessingOptions

from kdjax.distillation.feature_maps import array_of
from kdjax.models.adapters import is_network, network_of
from kdjax.models.file_network import load_file_network
from kdjax.models.model_files import is_model_file
from kdjax.models.network import (
    SCORES,
    Network,
    Variables,
    arrays_by_path,
    is_random_key,
    maps_of,
    preprocessing_of,
    scored_classes,
    trace_maps,
)
from kdjax.models.options import NetworkOptions
from kdjax.models.outputs import IMAGENET, Preprocessing
from kdjax.models.registry import make_network
from kdjax.models.several import SeveralNetworks, split_paths
from kdjax.utils import imports
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.classes import distinct_colors, numbered_names
from kdjax.utils.errors import RAISED_BY_USERS, UserError
from kdjax.utils.files import (
    absolute,
    check_folder,
    is_remote,
    reachable,
    read_json,
    remove_all,
    sync_tree,
    undo_unfinished,
    why_unwritable,
    write_atomically,
)
from kdjax.utils.log import logger
from kdjax.utils.schema import with_tuples

FORMAT = 3  # of network.json and of the names of parameters
CHANNEL_ORDER = "RGB"
MAX_REASON = 160  # characters
FOLDERS = ("parameters", "second_parameters")  # neither is a prefix of the other
DESCRIPTION = "network.json"
_MARK = {"kdjax": "network"}  # metadata of the folders that kdjax wrote


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """The description of a network, without its weights.

    Attributes:
      name: of the network or its factory, for `kdjax.models.make_network`.
      num_classes: number of class scores per pixel; 0 for a feature extractor.
      width: channels of the first stage.
      auxiliary: True if it has its auxiliary head.
      class_names: a name per class.
      palette: an RGB color per class.
      preprocessing: how pixels become its input.
      channel_order: of images and `preprocessing`, always "RGB".
      source: where the weights come from, in words.
      fingerprint: hash of the weights, which `save` sets.
      options: further keyword arguments of the factory.
      image_size: height and width that its parameters were made for, if they depend on them.
      initial_weights: the weights at the start of training: "path" and "fingerprint" of a network
        checkpoint, "file" and "sha256" of ImageNet weights, or nothing.
      bands: the bands of the images that it was trained on.
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
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_size: tuple[int, int] = (64, 64)
    initial_weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bands: Bands = RGB

    @property
    def in_channels(self) -> int:
        """The channels of its input."""
        return len(self.preprocessing.mean)

    def make(self, *, dtype: str, where: str = "network") -> Network:
        """Makes the network, without variables. `where` holds its name, for messages."""
        return make_network(
            self.name,
            num_classes=self.num_classes,
            width=self.width,
            auxiliary=self.auxiliary,
            in_channels=self.in_channels,
            dtype=dtype,
            options=self.options,
            where=where,
        )

    def require_scores(self, where: str) -> None:
        """Requires class scores, for callers that predict classes.

        Args:
          where: the network, for messages.

        Raises:
          UserError: if the network is a feature extractor.
        """
        if not self.num_classes:
            raise UserError(
                f"{where}: {self.name} has no class scores, only features; name a network that "
                "scores classes"
            )

    def blank_image(self) -> np.ndarray:
        """Returns images [1, H, W, C] for `Network.init`."""
        return np.zeros((1, *self.image_size, self.in_channels), np.float32)


def fingerprint(variables: Variables) -> str:
    """Returns a hash of all arrays of a network except its random keys."""
    return _hash(_kept(variables))


def _kept(variables: Variables) -> dict[str, Any]:
    """Returns the arrays of a checkpoint by path. Random keys, only for training, are left out."""
    arrays = arrays_by_path(variables)
    return {path: leaf for path, leaf in arrays.items() if not is_random_key(leaf)}


def _hash(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for path in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[path]).tobytes())
    return digest.hexdigest()[:16]


def save(path: epath.PathLike, info: NetworkInfo, variables: Variables) -> NetworkInfo:
    """Writes a network checkpoint and returns its info with the fingerprint.

    An existing checkpoint is kept until the new one is complete. Among several processes, only one
    calls this, with complete arrays.

    Args:
      path: the directory.
      info: describes the network.
      variables: of the network. Random keys, which only training needs, are left out.

    Raises:
      UserError: if the checkpoint cannot be written, or would replace other files.
    """
    directory = check_output(path)
    arrays = jax.device_get(_kept(variables))
    info = dataclasses.replace(info, fingerprint=_hash(arrays))
    try:
        _write(directory, arrays, {"format": FORMAT, **dataclasses.asdict(info)})
    # Each client of an object store has its own errors. TensorStore raises ValueError.
    except Exception as error:
        if not is_remote(directory) and not isinstance(error, (OSError, ValueError)):
            raise
        raise UserError(f"cannot write {directory}: {why_unwritable(error)}") from error
    return info


def check_output(path: epath.PathLike) -> epath.Path:
    """Returns a directory that `save` may write to.

    Raises:
      UserError: if `save` would replace files that it did not write, if the directory is a file, or
        if its store does not answer.
    """
    directory = reachable(path)
    if not is_remote(directory):
        check_folder(directory)
    for name in (DESCRIPTION, *FOLDERS):
        if (directory / name).exists() and not _is_ours(directory):
            raise UserError(
                f"{directory / name} exists and is not part of a network checkpoint; choose "
                "another directory"
            )
    return directory


def _is_ours(directory: epath.Path) -> bool:
    """Returns True if `save` wrote the files, also if the process was killed before the end."""
    description = directory / DESCRIPTION
    if description.exists():
        try:
            return "fingerprint" in read_json(description)
        except UserError:
            return False
    return all(_has_mark(directory / name) for name in FOLDERS if (directory / name).exists())


def _has_mark(folder: epath.Path) -> bool:
    try:
        with local_checkpointer() as checkpointer:
            metadata = checkpointer.metadata(absolute(folder))
    # For other folders, Orbax raises many kinds of errors.
    except Exception:
        return False
    return _MARK.items() <= (metadata.custom_metadata or {}).items()


def _write(directory: epath.Path, arrays: dict[str, Any], values: dict[str, Any]) -> None:
    used = _folder_in_use(directory)
    name = next(name for name in FOLDERS if name != used)
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        remove_all(directory, f"{name}.*")  # unfinished files of a killed process
        with local_checkpointer() as checkpointer:
            # `force` replaces a complete folder that network.json does not name.
            checkpointer.save(absolute(directory / name), arrays, force=True, custom_metadata=_MARK)
        if not is_remote(directory):
            sync_tree(directory / name)
        text = json.dumps(values | {"parameters": name}, indent=2, allow_nan=False) + "\n"
        write_atomically(directory / DESCRIPTION, text)
    except BaseException:
        undo_unfinished(directory, f"{name}*", made=made)
        raise
    if used and (directory / used).exists():
        (directory / used).rmtree()


def _folder_in_use(directory: epath.Path) -> str | None:
    """Returns the name of the folder that holds the parameters; None if there is no checkpoint."""
    description = directory / DESCRIPTION
    if not description.exists():
        return None
    name = read_json(description).get("parameters", FOLDERS[0])
    if name not in FOLDERS:
        raise UserError(f"{description}: damaged: parameters is {name!r}")
    return name


def load(
    path: epath.PathLike,
    *,
    dtype: str = "float32",
    seed: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Network, Variables, NetworkInfo]:
    """Reads a network checkpoint, the student of a finished run, or a model file.

    Args:
      path: a network checkpoint, or the workdir of a run, which holds one as `student/`. Or
        "package.module:attribute" of a user's trained network, or of a function without arguments
        that returns one. Its `init` returns the trained variables. It may have `class_names`, and
        a `fingerprint` that identifies weights outside of its variables. Or an ONNX or TensorFlow
        Lite file. Or several of these, with commas between them: a network that returns the maps
        of all, as "NAME/stage4", where NAME is the last part of a path.
      dtype: the type in which the network computes.
      seed: of the random state of modules that have their own, such as `nnx.Dropout`.
      options: how to read a model file, see `kdjax.models.file_reading.FileOptions`. Other networks
        bring their own options.

    Raises:
      UserError: if there is no checkpoint, it is damaged, its store does not answer, or its network
        cannot be made.
    """
    # A folder may have a comma in its name.
    if "," in os.fspath(path) and not reachable(path).exists():
        return _load_several(split_paths(os.fspath(path)), dtype, seed, options)
    if not imports.is_path(os.fspath(path)):
        return _load_by_name(os.fspath(path), dtype, seed)
    if is_model_file(path):
        return _load_model_file(os.fspath(path), dtype, options)
    directory = _find(path)
    if directory is None:
        raise UserError(
            f"{path}: no network checkpoint here (it needs a network.json, or the student/ of a "
            "finished run)"
        )
    description = directory / DESCRIPTION
    info = _read_info(description)
    network = info.make(dtype=dtype, where=f"{description}: network")
    key, image = jax.random.key(seed), info.blank_image()
    abstract = jax.eval_shape(network.init, key, image)
    try:
        folder = absolute(directory / (_folder_in_use(directory) or FOLDERS[0]))
        with local_checkpointer() as checkpointer:
            arrays = checkpointer.restore(folder, _kept(abstract))
    except Exception as error:
        # Orbax may name every array of the tree in one line.
        reason = textwrap.shorten(str(error).partition("\n")[0], MAX_REASON, placeholder=" ...")
        raise UserError(f"{directory}: the network checkpoint is damaged: {reason}") from error
    if _hash(arrays) != info.fingerprint:
        raise UserError(f"{directory}: the weights do not match the fingerprint in network.json")
    arrays = jax.device_put(arrays)
    paths = list(arrays_by_path(abstract))
    if len(paths) > len(arrays):

        def random_keys() -> dict[str, Any]:
            made = arrays_by_path(network.init(key, image))
            return {path: leaf for path, leaf in made.items() if is_random_key(leaf)}

        arrays |= jax.jit(random_keys)()
    leaves = [arrays[path] for path in paths]
    return network, jax.tree.unflatten(jax.tree.structure(abstract), leaves), info


def _load_several(
    paths: Mapping[str, str], dtype: str, seed: int, options: Mapping[str, Any]
) -> tuple[Network, Variables, NetworkInfo]:
    """Loads several networks as one without class scores."""
    loaded = {
        name: load(path, dtype=dtype, seed=seed, options=options) for name, path in paths.items()
    }
    network = SeveralNetworks(
        {name: (one, own, info.preprocessing) for name, (one, own, info) in loaded.items()}
    )
    joined = ",".join(paths.values())
    identities = {
        name: np.array(f"{info.fingerprint} {tuple(info.preprocessing)}")
        for name, (_, _, info) in loaded.items()
    }
    info = NetworkInfo(
        name=joined,
        num_classes=0,
        width=NetworkOptions.width,
        auxiliary=False,
        class_names=(),
        palette=(),
        preprocessing=network.preprocessing,
        source=joined,
        fingerprint=_hash(identities),
    )
    return network, network.init(jax.random.key(seed), info.blank_image()), info


def _load_by_name(name: str, dtype: str, seed: int) -> tuple[Network, Variables, NetworkInfo]:
    """Loads a user's network, whose `init` returns the trained variables.

    Raises:
      UserError: if there is no such network, it fails, or it should compute in another dtype.
    """
    if dtype != "float32":
        raise UserError(f"{name} sets its dtype by itself; kdjax cannot change it to {dtype}")
    found = imports.resolve("network", name, {}, asked_by="the path of a network")
    try:
        network = network_of(found if is_network(found) else found())
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except RAISED_BY_USERS as error:
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error
    preprocessing = preprocessing_of(network)
    info = NetworkInfo(name, 1, 64, False, (), (), preprocessing, source=name)
    variables = network.init(jax.random.key(seed), info.blank_image())
    maps = trace_maps(
        network, variables, info.image_size, train=False, channels=info.in_channels, name=name
    )
    count = scored_classes(maps)
    named = getattr(network, "class_names", None) or numbered_names(count)
    if len(named) != count:
        raise UserError(f"{name}: it names {len(named)} classes and scores {count}")
    info = dataclasses.replace(
        info,
        num_classes=count,
        class_names=tuple(named),
        palette=tuple(tuple(color) for color in distinct_colors(count).tolist()),
        fingerprint=_fingerprint_of(network, variables, info),
    )
    return network, variables, info


def _load_model_file(
    path: str, dtype: str, options: Mapping[str, Any]
) -> tuple[Network, Variables, NetworkInfo]:
    """Loads the network in an ONNX or TensorFlow Lite file.

    Raises:
      UserError: see `load_file_network`, or if the network should compute in another dtype.
    """
    if dtype != "float32":
        raise UserError(f"{path} sets its dtype by itself; kdjax cannot change it to {dtype}")
    network, found = load_file_network(path, options)
    count = len(network.class_names)
    info = NetworkInfo(
        name=os.path.basename(path),
        num_classes=count,
        width=NetworkOptions.width,
        auxiliary=False,
        class_names=network.class_names,
        palette=tuple(tuple(color) for color in distinct_colors(count).tolist()),
        preprocessing=network.preprocessing,
        source=path,
        fingerprint=found,
        options=options,
        bands=network.bands,
    )
    return network, network.init(jax.random.key(0), info.blank_image()), info


def _fingerprint_of(network: Network, variables: Variables, info: NetworkInfo) -> str:
    """Returns the hash that a user's network gives, or one of its arrays, or one of its scores."""
    given = getattr(network, "fingerprint", None)
    if isinstance(given, str):
        return given
    return fingerprint(variables) if _kept(variables) else _hash_of_scores(network, variables, info)


def _hash_of_scores(network: Network, variables: Variables, info: NetworkInfo) -> str:
    """Returns a hash of the scores on a fixed batch, for a network without arrays.

    Another framework holds the weights of such a network. The hash uses the mean score of each
    class, or of each channel of a feature extractor, to three digits, so that it does not depend on
    the number of threads. All networks that fail on the batch have the same hash, and a warning is
    logged.
    """
    shape = (2, *info.image_size, info.in_channels)
    images = jax.device_put(np.random.default_rng(0).standard_normal(shape, np.float32))
    try:
        output, _ = network.apply(variables, images, train=False, key=None)
        maps = maps_of(output)
        read = [SCORES] if SCORES in maps else sorted(maps)
        found = [np.asarray(array_of(maps[name]), np.float64) for name in read]
    # A user's code in a callback can raise any error.
    except Exception as error:
        # A callback puts a traceback before the message of its error.
        last = (str(error).strip().splitlines() or [""])[-1]
        reason = textwrap.shorten(last, MAX_REASON, placeholder=" ...")
        logger.warning(
            f"{info.name} fails on images of {info.image_size} ({type(error).__name__}: {reason}); "
            "kdjax will not notice a change of its weights"
        )
        return _hash({})
    means = np.concatenate([values.mean((0, 1, 2)) for values in found])
    scale = max(np.abs(means).max(), np.finfo(np.float32).tiny)
    # Adding 0 turns -0 into 0.
    return _hash({"means": np.round(means / scale, 3) + 0.0, "scale": np.array(f"{scale:.2e}")})


def info_in(path: epath.PathLike) -> NetworkInfo | None:
    """Returns the description of the checkpoint that `load` would read, or None if there is none.

    Raises:
      UserError: if the description is damaged, or its store does not answer.
    """
    directory = _find(path)
    return None if directory is None else _read_info(directory / DESCRIPTION)


def fingerprint_in(
    path: epath.PathLike, options: Mapping[str, Any] = MappingProxyType({})
) -> str | None:
    """Returns the fingerprint of the network that `load` would read, or None if there is none.

    A user's network has none before it is loaded, and a file that is missing has none.

    Args:
      path: see `load`.
      options: see `load`.
    """
    if is_model_file(path):
        exists = os.path.isfile(path)
        return load_file_network(os.fspath(path), options)[1] if exists else None
    info = info_in(path)
    return info and info.fingerprint


def is_complete(directory: epath.Path) -> bool:
    """Returns True if a directory holds a description and the folder that the description names."""
    try:
        name = _folder_in_use(directory)
    except UserError:
        return False
    return name is not None and (directory / name).exists()


def _find(path: epath.PathLike) -> epath.Path | None:
    """Returns the directory of the network checkpoint in `path`, or in its `student/`."""
    directory = reachable(path)
    for place in (directory, directory / "student"):
        if (place / DESCRIPTION).exists():
            return place
    return None


def local_checkpointer() -> ocp.StandardCheckpointer:
    """Returns a checkpointer that does not wait for other processes."""
    process = jax.process_index()
    alone = MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"network{process}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _read_info(path: epath.Path) -> NetworkInfo:
    values = read_json(path)
    try:
        values.pop("parameters", None)
        if values.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of kdjax")
        if values.get("channel_order", CHANNEL_ORDER) != CHANNEL_ORDER:
            raise UserError(f"{path}: channel_order must be {CHANNEL_ORDER}")
        values["preprocessing"] = Preprocessing(*map(tuple, values["preprocessing"]))
        values["class_names"] = tuple(values["class_names"])
        values["palette"] = tuple(map(tuple, values["palette"]))
        values["options"] = with_tuples(values["options"])
        values["image_size"] = tuple(values["image_size"])
        dtype, *measured = values.get("bands", RGB)
        values["bands"] = Bands(dtype, *map(tuple, measured))
        return NetworkInfo(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}") from error
