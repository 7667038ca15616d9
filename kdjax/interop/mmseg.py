"""Weights from and to mmsegmentation: the same network under other names and layouts."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.errors import UserError
from kdjax.interop import attention_names, names
from kdjax.interop.wrappers import unwrapped
from kdjax.models import Segmenter

RULES = [*names.RULES, *attention_names.RULES]

# What PyTorch calls our leaves; others keep their name.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# Of a checkpoint of another network, everything is wrong; so many names of each kind say it.
SHOWN = 20


# A leaf's path in the network, and the variable there.
Leaf = tuple[tuple[Any, ...], nnx.Variable]


def from_mmseg(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets the parameters and running statistics of a network to those of mmsegmentation's.

    Args:
      net: a network of `kdjax.models`; also an abstract one, of `nnx.eval_shape`.
      state_dict: NumPy arrays (or what NumPy can read) by name, or a checkpoint that holds them as
        "state_dict"; names may begin with "module.", and of a distiller's file, the student is
        taken ("student.", "architecture."). Half precision becomes float32.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: listing every name that is missing or unexpected and every wrong shape; the
        network is as it was before.
    """
    given, wanted = weights_of(state_dict), leaves(net)
    if new_classifier:
        for name in [name for name in wanted if name.startswith(CLASSIFIERS) and name in given]:
            if given[name].shape[0] != torch_shape(wanted[name])[0]:
                del wanted[name], given[name]
    assign(net, wanted, given)


def from_backbone(net: Segmenter, state_dict: Mapping[str, Any]) -> None:
    """Sets the backbone alone, such as one that was trained on ImageNet; the heads stay.

    Args:
      net: a network of `kdjax.models`.
      state_dict: arrays as for `from_mmseg`, under the backbone's names without "backbone."; what
        classified images (`fc.`) is left out.

    Raises:
      UserError: as `from_mmseg`.
    """
    wanted = {name: leaf for name, leaf in leaves(net).items() if name.startswith("backbone.")}
    weights = weights_of(state_dict).items()
    given = {f"backbone.{name}": value for name, value in weights if not name.startswith("fc.")}
    assign(net, wanted, given)


def to_mmseg(net: Segmenter) -> dict[str, np.ndarray]:
    """Returns parameters and running statistics under mmsegmentation's names and layouts.

    The exact inverse of `from_mmseg`. PyTorch's `load_state_dict` itself supplies the counters
    (`num_batches_tracked`) that are not in it.
    """
    weights = {
        name: np.ascontiguousarray(
            np.transpose(variable[...], _layout(str(path[-1]), len(variable.shape)))
        )
        for name, (path, variable) in leaves(net).items()
    }
    for buffer, (parameter, compute) in attention_names.BUFFERS.items():
        for name in [name for name in weights if name.endswith(parameter)]:
            weights[name.removesuffix(parameter) + buffer] = compute()
    return weights


def leaves(net: Segmenter) -> dict[str, Leaf]:
    """Returns the parameters and running statistics of a network by mmsegmentation's name."""
    state = nnx.state(net, nnx.Any(nnx.Param, nnx.BatchStat))
    return {_torch_name(path): (path, variable) for path, variable in nnx.to_flat_state(state)}


def torch_shape(leaf: Leaf) -> tuple[int, ...]:
    """Returns the shape that a leaf has in PyTorch."""
    path, variable = leaf
    return tuple(variable.shape[axis] for axis in _layout(str(path[-1]), len(variable.shape)))


def weights_of(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint by name, in float32, without what is none of ours.

    Raises:
      UserError: where something in it is no array of numbers with a point. Whole numbers are those
        of quantized weights, whose scale is not known.
    """
    inner = state_dict.get("state_dict", state_dict)
    arrays = {}
    for name, own_name in unwrapped(inner).items():
        if name.endswith(("num_batches_tracked", *attention_names.BUFFERS)):
            continue
        array = np.asarray(inner[name])
        if array.dtype == object or not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f'the weights hold "{name}", which is no array of floating-point numbers '
                f"({array.dtype})"
            )
        with np.errstate(over="ignore"):  # `assign` finds what becomes infinite
            arrays[own_name] = array.astype(np.float32, copy=False)
    return arrays


def assign(net: Segmenter, wanted: Mapping[str, Leaf], given: Mapping[str, np.ndarray]) -> None:
    """Sets the leaves `wanted` of a network to the arrays `given`, all or none.

    Raises:
      UserError: listing every name that is missing or unexpected and every wrong shape; or the
        first weights that are not finite.
    """
    shapes = {name: torch_shape(leaf) for name, leaf in wanted.items()}
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {given[name].shape} instead of {shape}"
            for name, shape in shapes.items()
            if name in given and given[name].shape != shape
        ],
    }
    if any(problems.values()):
        texts = [f"{kind}: {_listed(found)}" for kind, found in problems.items() if found]
        raise UserError(f"the weights are not this network's; {'; '.join(texts)}")
    for name in wanted:
        bad = np.sum(~np.isfinite(given[name]))
        if bad:
            raise UserError(
                f'the weights are damaged: {bad} of the {given[name].size} numbers of "{name}" are '
                "NaN or infinite"
            )
    state = []
    for name, (path, variable) in wanted.items():
        layout = np.argsort(_layout(str(path[-1]), given[name].ndim))
        state.append((path, variable.replace(jnp.asarray(given[name].transpose(layout)))))
    nnx.update(net, nnx.from_flat_state(state))


def _torch_name(path: tuple[Any, ...]) -> str:
    module, leaf = "/".join(map(str, path[:-1])), str(path[-1])
    for pattern, replacement in RULES:
        match = re.fullmatch(pattern, module)
        if match:
            name = match.expand(replacement)
            # PyTorch's fused projections are no modules: their weight is `in_proj_weight`.
            return f"{name}{'' if name.endswith('_') else '.'}{LEAVES.get(leaf, leaf)}"
    raise LookupError(f"no rule of kdjax.interop names the module {module}")


def _layout(leaf: str, dimensions: int) -> tuple[int, ...]:
    """Returns which of our axes PyTorch's are: HWIO becomes OIHW, and IO becomes OI."""
    if leaf == "kernel":
        return {4: (3, 2, 0, 1), 2: (1, 0)}[dimensions]
    return tuple(range(dimensions))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
