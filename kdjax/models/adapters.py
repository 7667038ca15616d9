"""Adapters that turn modules of Flax NNX and Linen into a `Network`."""

import inspect
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from flax import linen, nnx
from jaxtyping import PRNGKeyArray

from kdjax.models.network import (
    Applied,
    Images,
    Key,
    Network,
    NotANetwork,
    Variables,
    preprocessing_of,
)


class _Stream(nnx.RngStream):
    """A stream that does not compare the sharding of its count at each draw.

    A new stream's count is a NumPy number, also within a trace. If a network keeps the stream, the
    count is an array of the network's state.
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
    """Returns `nnx.Rngs` with the same keys, which are faster in a trace.

    Flax compares the sharding of a stream's count at each draw. A traced array has no sharding, and
    JAX collects the text of an error from all previous operations, which Flax drops. For an
    abstract HRNet-W48, this took 15 s.
    """
    rngs = nnx.Rngs(*seeds, **streams)
    for name, stream in rngs.items():
        setattr(rngs, name, _Stream(stream.key[...], tag=stream.tag))
    return rngs


class NNXNetwork:
    """A network of Flax NNX.

    Args:
      make: returns a new module from random streams. The module is called as module(images), with
        `train=` and `rngs=` if its `__call__` has these arguments.
      like: a module like those of `make`, possibly abstract. By default, `make` makes it.

    Attributes:
      preprocessing: of the module.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], like: nnx.Module | None = None):
        self._make = make
        module: Any = like or nnx.eval_shape(lambda: make(traced_rngs(0)))
        self._graphdef = nnx.graphdef(module)
        self._arguments = _arguments_of(module)
        self.preprocessing = preprocessing_of(module)

    @classmethod
    def of(cls, module: nnx.Module) -> tuple[Self, Variables]:
        """Returns a module's network and variables. Neither changes the module."""
        return cls(lambda rngs: nnx.clone(module), module), _variables(module)

    def changed(self, change: Callable[[nnx.Module], None]) -> Self:
        """Returns a network with the same variables whose module `change` modified in place."""

        def make(rngs: nnx.Rngs) -> nnx.Module:
            module = self._make(rngs)
            change(module)
            return module

        return type(self)(make)

    def fresh(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a new module from random streams."""
        return self._make(rngs)

    def module(self, variables: Variables) -> nnx.Module:
        """Returns the module with these variables."""
        return nnx.merge(self._graphdef, variables["params"], variables["state"])

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns the variables of a new module."""
        del images
        return _variables(self._make(traced_rngs(key)))

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns the output of the module, and the variables after a training step."""
        module: Any = self.module(variables)
        # Some modules read this mode. The mode in which the user left the module has no effect.
        module.train() if train else module.eval()
        offered = {"train": train, "rngs": None if key is None else traced_rngs(dropout=key)}
        output = module(images, **{k: v for k, v in offered.items() if k in self._arguments})
        return output, _variables(module) if train else variables


class LinenNetwork:
    """A network of Flax Linen.

    Args:
      module: called as module.apply(variables, images), with `train=` if its `__call__` has it. The
        collection "params" is trained; the others are state.
    """

    def __init__(self, module: linen.Module):
        self._module = module
        self._takes_train = "train" in _arguments_of(module)
        self.preprocessing = preprocessing_of(module)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns the initial variables of the module."""
        made = jax.jit(lambda: self._module.init({"params": key}, images, **self._mode(False)))()
        state = dict(linen.meta.unbox(made))
        return {"params": state.pop("params", {}), "state": state}

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns the output of the module, and the variables after a training step."""
        params, state = variables["params"], variables["state"]
        output, changed = self._module.apply(
            {"params": params, **state},
            images,
            **self._mode(train),
            # Every stream that a module names falls back to this one.
            rngs=None if key is None else {"params": key},
            mutable=list(state) if train else [],
        )
        return output, {"params": params, "state": {**state, **changed}}

    def _mode(self, train: bool) -> dict[str, Any]:
        return {"train": train} if self._takes_train else {}


def is_network(found: Any) -> bool:
    """Returns True if an object is a network or a module, rather than a factory."""
    return not isinstance(found, type) and isinstance(found, (nnx.Module, linen.Module, Network))


def network_of(made: Any) -> Network:
    """Wraps the result of a user's factory in the `Network` protocol.

    Args:
      made: a module of Linen or NNX, or an object with the methods of `Network`.

    Raises:
      NotANetwork: for anything else.
    """
    if isinstance(made, nnx.bridge.ToNNX):
        return LinenNetwork(made.to_nnx__module)
    if isinstance(made, linen.Module):
        return LinenNetwork(made)
    if isinstance(made, nnx.Module):
        return NNXNetwork.of(made)[0]
    if isinstance(made, Network) and not isinstance(made, type):
        return made
    raise NotANetwork(
        f"it is a {type(made).__name__}; it must be a module of Flax NNX or Linen, or an object "
        "with the methods init(key, images) and apply(variables, images, *, train, key)"
    )


def _variables(module: nnx.Module) -> Variables:
    params, state = nnx.state(module, nnx.Param, ...)
    return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}


def _arguments_of(module: Any) -> frozenset[str]:
    return frozenset(inspect.signature(type(module).__call__).parameters)
