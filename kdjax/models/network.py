"""The neutral form of a network: a function from variables and images to named maps.

Training, evaluation, export and plans know this form alone. Flax NNX and Linen come by the two
adapters here; anything else, as Equinox, several teachers at once or a network of another
framework behind `jax.pure_callback`, is an object with the two methods of `Network`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kdjax.distillation import Classification, Maps
from kdjax.distillation.feature_maps import SCORES as CLASS_SCORES
from kdjax.distillation.feature_maps import array_of
from kdjax.models.outputs import IMAGENET, Preprocessing, SegmentationOutput
from kdjax.utils.errors import RAISED_BY_USERS, UserError


class _Stream(nnx.RngStream):
    """A stream that does not compare the sharding of its count at each draw.

    Where it is made, the count is a number of NumPy, also within a trace; where a network that
    keeps it runs in a step, it is an array of the step's state like any other.
    """

    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        zero: Any = np.zeros(self.key.shape, np.uint32)
        self.count.set_raw_value(zero)

    def __call__(self) -> jax.Array:
        count = self.count.get_raw_value()
        self.count.set_raw_value(count + np.uint32(1))
        return jax.random.fold_in(self.key.get_raw_value(), count)


def traced_rngs(*seeds: nnx.rnglib.RngValue, **streams: nnx.rnglib.RngValue) -> nnx.Rngs:
    """Returns `nnx.Rngs` of the same keys.

    Flax compares the sharding of a stream's count at each draw. An array that is traced has none:
    JAX then gathers, from all operations so far, the text of an error that Flax drops. An abstract
    HRNet-W48 took 15 s that way.
    """
    rngs = nnx.Rngs(*seeds, **streams)
    for name, stream in rngs.items():
        setattr(rngs, name, _Stream(stream.key[...], tag=stream.tag))
    return rngs


Variables = dict[str, PyTree]
"""All arrays of a network: "params" are trained, "state" changes otherwise, as running statistics
and the random state of modules that have their own."""

Images = Float[Array, "B H W 3"] | Float[np.ndarray, "B H W 3"]
SCORES = "logits"


class NoNetwork(TypeError):
    """What was given is no network, or returns no maps."""


@runtime_checkable
class Network(Protocol):
    """What a step, the evaluator, the exporter and the planner need of a network.

    It may have a `preprocessing` (`kdjax.models.Preprocessing`): how 8-bit pixels become its input;
    without one that is the mean and deviation of ImageNet.
    """

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Its first variables, {"params": ..., "state": ...}: pytrees of arrays.

        Args:
          key: for what is drawn at random.
          images: of the shape that it will see; their values mean nothing.
        """
        ...

    def apply(
        self,
        variables: Variables,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Variables]:
        """Its output, and the variables with what a training step changed beside the gradients.

        Args:
          variables: as `init` returned them; a pure function of them.
          images: normalised.
          train: whether this is a step of training.
          key: for what is drawn at random, as by dropout; None where `train` is False.

        Returns:
          The class scores [B, h, w, K], or a dict of maps [B, h, w, C] by name with "logits" among
          them, or a `SegmentationOutput`; and the variables.
        """
        ...


class NNXNetwork:
    """A network of Flax NNX.

    Args:
      make: returns a new module, of random streams. It is called as module(images), with `train=`
        and `rngs=` where its `__call__` takes them.
      like: a module as `make` returns it, whose arrays may be abstract; made where it is None.

    Attributes:
      preprocessing: of the module where it has one.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], like: nnx.Module | None = None):
        self._make = make
        module: Any = like or nnx.eval_shape(lambda: make(traced_rngs(0)))
        self._graphdef = nnx.graphdef(module)
        self._takes = _parameters_of(type(module).__call__)
        self.preprocessing = preprocessing_of(module)

    @classmethod
    def of(cls, module: nnx.Module) -> tuple[Self, Variables]:
        """A module's neutral form, and its variables; both leave the module as it is."""
        return cls(lambda rngs: nnx.clone(module), module), _variables(module)

    def changed(self, change: Callable[[nnx.Module], None]) -> Self:
        """The network whose module was changed in place, of the same variables."""

        def make(rngs: nnx.Rngs) -> nnx.Module:
            module = self._make(rngs)
            change(module)
            return module

        return type(self)(make)

    def fresh(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new module of these random streams."""
        return self._make(rngs)

    def module(self, variables: Variables) -> nnx.Module:
        """The module with these variables."""
        return nnx.merge(self._graphdef, variables["params"], variables["state"])

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """As `Network.init`."""
        del images
        return _variables(self._make(traced_rngs(key)))

    def apply(
        self,
        variables: Variables,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Variables]:
        """As `Network.apply`."""
        module: Any = self.module(variables)
        # For modules that go by this mode. The mode that the user left the module in means nothing.
        module.train() if train else module.eval()
        offered = {"train": train, "rngs": None if key is None else traced_rngs(dropout=key)}
        output = module(images, **{k: v for k, v in offered.items() if k in self._takes})
        return output, _variables(module) if train else variables


class LinenNetwork:
    """A network of Flax Linen.

    Args:
      module: called as module.apply(variables, images), with `train=` where its `__call__` takes
        it. "params" is the collection that is trained; the others are carried.
    """

    def __init__(self, module: linen.Module):
        self._module = module
        self._takes = _parameters_of(type(module).__call__)
        self.preprocessing = preprocessing_of(module)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """As `Network.init`."""
        made = jax.jit(lambda: self._module.init({"params": key}, images, **self._mode(False)))()
        state = dict(linen.meta.unbox(made))
        return {"params": state.pop("params", {}), "state": state}

    def apply(
        self,
        variables: Variables,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Variables]:
        """As `Network.apply`."""
        params, state = variables["params"], variables["state"]
        output, changed = self._module.apply(
            {"params": params, **state},
            images,
            **self._mode(train),
            # All streams that a module may name fall back to this one.
            rngs=None if key is None else {"params": key},
            mutable=list(state) if train else [],
        )
        return output, {"params": params, "state": {**state, **changed}}

    def _mode(self, train: bool) -> dict[str, Any]:
        return {"train": train} if "train" in self._takes else {}


def is_made(found: Any) -> bool:
    """Whether a name stands for a network, and not for what makes one."""
    return not isinstance(found, type) and isinstance(found, (nnx.Module, linen.Module, Network))


def network_of(made: Any) -> Network:
    """The neutral form of what a factory of a user's returned.

    Args:
      made: a module of Linen or NNX, or an object with the methods of `Network`.

    Raises:
      NoNetwork: for anything else.
    """
    if isinstance(made, nnx.bridge.ToNNX):
        return LinenNetwork(made.to_nnx__module)
    if isinstance(made, linen.Module):
        return LinenNetwork(made)
    if isinstance(made, nnx.Module):
        return NNXNetwork.of(made)[0]
    if isinstance(made, Network) and not isinstance(made, type):
        return made
    raise NoNetwork(
        f"it is a {type(made).__name__}; it must be a module of Flax NNX or Linen, or an object "
        "with the methods init(key, images) and apply(variables, images, *, train, key)"
    )


def preprocessing_of(network: Any) -> Preprocessing:
    """How pixels become the input of a network or a module."""
    return getattr(network, "preprocessing", IMAGENET)


def maps_of(output: Any) -> Maps:
    """The maps by name of what a network returned.

    Raises:
      NoNetwork: where it is neither scores, nor maps with "logits" among them.
    """
    if isinstance(output, SegmentationOutput):
        return output.maps
    if isinstance(output, Mapping) and SCORES in output:
        return output
    if isinstance(output, jax.Array):
        return {SCORES: output}
    found = f"maps {', '.join(output)}" if isinstance(output, Mapping) else type(output).__name__
    raise NoNetwork(
        f'its output must be the class scores, or a dict of maps with "{SCORES}"; it is {found}'
    )


class ReorderedClasses:
    """A network whose class scores come in another order.

    Args:
      network: the network.
      order: the network's id of each class, in the order in which the scores shall come.
    """

    def __init__(self, network: Network, order: Sequence[int]):
        self.network = network
        self.order = tuple(order)
        self.preprocessing = preprocessing_of(network)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """As `Network.init`."""
        return self.network.init(key, images)

    def apply(
        self,
        variables: Variables,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Variables]:
        """As `Network.apply`; the output is a dict of maps."""
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


def scores_of(output: Any) -> Float[Array, "B h w K"]:
    """The class scores among what a network returned."""
    return array_of(maps_of(output)[SCORES])


def trace_maps(
    network: Network,
    variables: Variables,
    size: tuple[int, ...],
    *,
    train: bool,
    batch: int = 2,
    name: str = "the network",
) -> Maps:
    """Returns the shapes and types of a network's maps, by name, without running the network.

    Args:
      network: the network.
      variables: its arrays, or `jax.ShapeDtypeStruct` in their place.
      size: height and width of the images.
      train: True for the maps of a training step, which include those of an auxiliary head.
      batch: number of images.
      name: what messages call the network.

    Raises:
      UserError: if the network fails on such images, if its class scores are not real numbers
        [B, h, w, K], or if a training step changes the shapes or types of its state.
    """

    def forward(variables: Variables, images: Array) -> tuple[Maps, PyTree, PyTree]:
        key = jax.random.key(0) if train else None
        output, after = network.apply(variables, images, train=train, key=key)
        # The state before comes back too, since JAX may give other types to NumPy's numbers.
        before, changed = (variables["state"], after["state"]) if train else ({}, {})
        return maps_of(output), before, changed

    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    try:
        maps, before, after = jax.eval_shape(forward, variables, images)
    except UserError:
        raise
    except NoNetwork as error:
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
    scores = array_of(maps[SCORES])
    shape = list(scores.shape)
    if len(shape) != 4:
        raise UserError(f"{name}: its logits are {shape}; they must be [B, h, w, K], channels last")
    if shape[0] != batch or 0 in shape:
        raise UserError(
            f"{name}: its logits are {shape} for {batch} images; they must be [{batch}, h, w, K], "
            "none of them 0"
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
    """All arrays of a pytree by their paths, which do not depend on the types of its nodes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_random_key(leaf: Any) -> bool:
    """Whether an array holds random keys, which are no numbers."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _variables(module: nnx.Module) -> Variables:
    params, state = nnx.state(module, nnx.Param, ...)
    return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}


def _parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
