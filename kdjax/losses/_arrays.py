"""Operations on arrays that several losses use."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# A product in full float32. By default, accelerators round the operands to bfloat16 or TF32, but
# the losses take small differences of such products.
einsum = functools.partial(
    jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


def is_class(
    labels: Int[Array, "*shape"], classes: int, ignore_label: int
) -> Bool[Array, "*shape classes"]:
    """Returns the one-hot mask of every label, all False if the label is ignored or no class."""
    # int32 first: an ignore label of -1 would wrap around in uint8.
    labels = labels.astype(jnp.int32)[..., None]
    return (labels == jnp.arange(classes)) & (labels != ignore_label)


def rows(
    table: Float[Array, "rows columns"], index: Int[Array, "*shape"]
) -> Float[Array, "*shape columns"]:
    """Returns the row of every index, on the device of the index; indices are clipped."""
    sharding = jax.typeof(index).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:  # JAX does not infer the sharding
        spread = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))
    else:
        spread = None
    return table.at[index].get(mode="clip", out_sharding=spread)


def everywhere(array: Array, axis: int) -> Array:
    """Replicates an axis on every device. On Auto axes, the compiler does so if needed."""
    sharding = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    spec = [None if index == axis else part for index, part in enumerate(sharding.spec)]
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def sum_over_first(function: Callable[..., Array], arrays: Any) -> Array:
    """Sums `function` over the entries of the arrays' first axis, one entry at a time.

    The backward pass computes each entry again, so that memory holds the values of one entry.
    """
    function = jax.checkpoint(function, prevent_cse=False)
    one = jax.eval_shape(function, jax.tree.map(lambda array: array[0], arrays))
    # Zeros of exactly this type: on a mesh with Explicit axes, or in shard_map, the type includes
    # the sharding, and a loop must not change it.
    total, _ = jax.lax.scan(
        lambda total, entry: (total + function(entry), None), jnp.zeros_like(one), arrays
    )
    return total


def length(
    array: Float[Array, "*shape"], axis: int | tuple[int, ...] = -1
) -> Float[Array, "*shape"]:
    """Returns the Euclidean length and keeps the axis; 1 for zero vectors, which stay zero."""
    square = jnp.sum(jnp.square(array), axis, keepdims=True)
    return jnp.sqrt(jnp.where(square > 1e-16, square, 1.0))


def by_group(
    array: Float[Array, "*batch B H W C"], group: int, axis_name: Any = None
) -> Float[Array, "*batch G N H W C"]:
    """Splits a batch into groups of consecutive images, `[..., B / group, group, H, W, C]`."""
    if axis_name is not None:
        raise ValueError("group and axis_name exclude each other: groups stay on their device")
    *batch, height, width, channels = array.shape
    if group < 1 or not batch or batch[-1] % group:
        raise ValueError(f"group must divide the images of the batch, got {group} of {batch}")
    return array.reshape(*batch[:-1], batch[-1] // group, group, height, width, channels)


def flat_pixels(features):
    *batch, height, width, channels = features.shape
    return features.astype(jnp.float32).reshape(*batch, height * width, channels)


def moments(features, axes, axis_name):
    """Returns the features minus their mean, and the variance, which keeps `axes`."""
    features = features.astype(jnp.float32)
    # A channel's own value is subtracted first, so that a constant channel is exactly 0, and a
    # small variation around a large level keeps its digits. For several images, this is the
    # largest of their first pixels, because all devices need the same number.
    origin = jax.lax.stop_gradient(features)
    for axis in reversed(axes):
        if axis < 0:
            origin = jax.lax.index_in_dim(origin, 0, axis)
        else:
            origin = jnp.max(origin, axis, keepdims=True)
    if axis_name is not None:
        origin = jax.lax.pmax(origin, axis_name)

    def mean(array):
        array = jnp.mean(array, axes, keepdims=True)
        return array if axis_name is None else jax.lax.pmean(array, axis_name)

    centered = features - origin
    centered -= mean(centered)
    return centered, mean(jnp.square(centered))
