"""The `Network` protocol: a function from variables and images to named maps.

Training, evaluation, export, and planning use this protocol alone. `kdjax.models.adapters` has the
adapters of Flax NNX and Linen. Anything else, such as Equinox, an ensemble, or a network of another
framework behind `jax.pure_callback`, is an object with the two methods of `Network`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kdjax.distillation import Classification, Maps
from kdjax.distillation.feature_maps import SCORES as CLASS_SCORES
from kdjax.distillation.feature_maps import array_of
from kdjax.models.outputs import IMAGENET, Preprocessing, SegmentationOutput
from kdjax.utils.errors import RAISED_BY_USERS, UserError

Variables = dict[str, PyTree]
"""All arrays of a network. "params" are trained. "state" changes in other ways, such as running
statistics and the random state of modules that have their own."""

Images = Float[Array, "B H W C"] | Float[np.ndarray, "B H W C"]
Key = PRNGKeyArray | None
Applied = tuple[Any, Variables]  # the output of a network, and the variables after a step
SCORES = "logits"


class NotANetwork(TypeError):
    """An object is not a network, or its output is not maps."""


@runtime_checkable
class Network(Protocol):
    """A network for the step, the evaluator, the exporter, and the planner.

    It may have an attribute `preprocessing` (`kdjax.models.Preprocessing`), which turns 8-bit
    pixels into its input. The default is the mean and deviation of ImageNet.
    A network whose weights are not among its variables may have a `fingerprint`, a string that
    identifies them.
    """

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns the initial variables {"params": ..., "state": ...}, pytrees of arrays.

        Args:
          key: for random draws.
          images: of the shape of its later inputs; their values are arbitrary.
        """
        ...

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns the output, and the variables with the state after a training step.

        Args:
          variables: like those that `init` returned. The output depends only on the arguments.
          images: normalized.
          train: True in a training step.
          key: for random draws, for example of dropout; None if `train` is False.

        Returns:
          The class scores [B, h, w, K], or a dict of maps [B, h, w, C] by name, or a
          `SegmentationOutput`; and the variables. The class scores are the map "logits". A network
          without it is a feature extractor: it may teach features, and train to match them.
        """
        ...


def preprocessing_of(network: Any) -> Preprocessing:
    """Returns how pixels become the input of a network or a module."""
    return getattr(network, "preprocessing", IMAGENET)


def maps_of(output: Any) -> Maps:
    """Returns the maps by name in the output of a network.

    Raises:
      NotANetwork: if the output is neither scores nor maps.
    """
    if isinstance(output, SegmentationOutput):
        return output.maps
    if isinstance(output, Mapping) and output:
        return output
    if isinstance(output, jax.Array):
        return {SCORES: output}
    found = "an empty dict" if isinstance(output, Mapping) else type(output).__name__
    raise NotANetwork(
        f'its output must be the class scores, or a dict of maps, as "{SCORES}"; it is {found}'
    )


def scored_classes(maps: Maps) -> int:
    """Returns the number of classes that a network scores; 0 for a feature extractor."""
    return array_of(maps[SCORES]).shape[-1] if SCORES in maps else 0


def scores_of(output: Any) -> Float[Array, "B h w K"]:
    """Returns the class scores in the output of a network.

    Raises:
      UserError: if the network has none.
    """
    maps = maps_of(output)
    if SCORES not in maps:
        raise UserError(f'the network has no class scores ("{SCORES}"), only {", ".join(maps)}')
    return array_of(maps[SCORES])


class ReorderedClasses:
    """A network with its class scores in another order.

    Args:
      network: the network.
      order: for each place in the new order, the network's id of the class.
    """

    def __init__(self, network: Network, order: Sequence[int]):
        self.network = network
        self.order = tuple(order)
        self.preprocessing = preprocessing_of(network)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns the variables of the network."""
        return self.network.init(key, images)

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns a dict of maps, and the variables."""
        output, variables = self.network.apply(variables, images, train=train, key=key)
        maps = maps_of(output).items()
        return {name: self._reordered(name, value) for name, value in maps}, variables

    def _reordered(self, name: str, value: Array | Classification) -> Array | Classification:
        order = np.array(self.order)
        if isinstance(value, Classification):
            return dataclasses.replace(
                value,
                logits=value.logits[..., order],
                kernel=value.kernel[:, order],
                bias=value.bias[order],
            )
        return value[..., order] if name in CLASS_SCORES else value


def trace_maps(
    network: Network,
    variables: Variables,
    size: tuple[int, ...],
    *,
    train: bool,
    batch: int = 2,
    channels: int = 3,
    name: str = "the network",
) -> Maps:
    """Returns the shapes and types of a network's maps, by name, without running the network.

    Args:
      network: the network.
      variables: its arrays, or `jax.ShapeDtypeStruct` in their place.
      size: height and width of the images.
      train: True for the maps of a training step, which include those of an auxiliary head.
      batch: number of images.
      channels: of the images.
      name: of the network in messages.

    Raises:
      UserError: if the network fails on such images, if its class scores are not real numbers
        [B, h, w, K], or if a training step changes the shapes or types of its state.
    """

    def forward(variables: Variables, images: Array) -> tuple[Maps, PyTree, PyTree]:
        key = jax.random.key(0) if train else None
        output, after = network.apply(variables, images, train=train, key=key)
        # The trace may change the types of NumPy's numbers, so it also returns the state before.
        before, changed = (variables["state"], after["state"]) if train else ({}, {})
        return maps_of(output), before, changed

    images = jax.ShapeDtypeStruct((batch, *size, channels), jnp.float32)
    try:
        maps, before, after = jax.eval_shape(forward, variables, images)
    except UserError:
        raise
    except NotANetwork as error:
        raise UserError(f"{name}: {error}") from error
    except RAISED_BY_USERS as error:
        mode = "training" if train else "evaluation"
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{name} fails in {mode} on images {list(images.shape)}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    _check_maps(name, maps, batch)
    _check_state(name, before, after)
    return maps


def _check_maps(name: str, maps: Maps, batch: int) -> None:
    for key, value in maps.items():
        if jnp.issubdtype(array_of(value).dtype, jnp.complexfloating):
            raise UserError(
                f'{name}: its map "{key}" is {array_of(value).dtype}; maps must be real numbers'
            )
    if SCORES not in maps:
        return
    scores = array_of(maps[SCORES])
    shape = list(scores.shape)
    if len(shape) != 4 or shape[0] != batch or 0 in shape:
        raise UserError(
            f"{name}: its logits are {shape} for {batch} images; they must be [{batch}, h, w, K], "
            "channels last, without empty axes"
        )
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise UserError(f"{name}: its logits are {scores.dtype}; they must be floating-point")


def _check_state(name: str, before: PyTree, after: PyTree) -> None:
    old, new = (
        {path: f"{leaf.dtype} {list(leaf.shape)}" for path, leaf in arrays_by_path(tree).items()}
        for tree in (before, after)
    )
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            raise UserError(
                f'{name}: a training step turns "{path}" of its state from '
                f"{old.get(path, 'nothing')} into {new.get(path, 'nothing')}; names, shapes, and "
                "types must stay the same"
            )


def arrays_by_path(tree: PyTree) -> dict[str, Array]:
    """Returns all arrays of a pytree by their paths, which omit the types of the nodes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_random_key(leaf: Any) -> bool:
    """Returns True if an array holds random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
