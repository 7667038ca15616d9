"""Helpers of the losses: checks at trace time, float32 products, resizing, and pooling."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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


def shape_of(array: jax.Array) -> str:
    """Returns a shape as the documentation writes it, `[2, 64, 128, 19]`."""
    return str(list(array.shape))


def dtype_of(name: str, array: jax.Array) -> jnp.dtype:
    """Returns the dtype of an array of JAX or NumPy.

    Raises:
      TypeError: for a list, or an array of another library.
    """
    try:
        return jnp.dtype(array.dtype)
    except (AttributeError, TypeError):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"{name} is a {kind}; give a JAX or NumPy array") from None


def check_map(name: str, array: jax.Array) -> None:
    """Requires a floating-point array `[..., H, W, C]`."""
    if not jnp.issubdtype(dtype_of(name, array), jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got {array.dtype} {shape_of(array)}; "
            "a loss takes scores or features, not class indices"
        )
    if array.ndim < 3:
        raise ValueError(f"{name} must be [..., H, W, C], got {shape_of(array)}")
    if math.prod(array.shape[-3:]) == 0:
        raise ValueError(f"{name} must have at least one pixel and channel, got {shape_of(array)}")


def check_same_size(student: jax.Array, teacher: jax.Array) -> None:
    """Requires two maps of the same batch and size; their channels may differ."""
    check_map("student", student)
    check_map("teacher", teacher)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            "student and teacher must have the same batch and size, got student "
            f"{shape_of(student)} and teacher {shape_of(teacher)}; resize one of the two first"
        )


def check_same_shape(student: jax.Array, teacher: jax.Array) -> None:
    """Requires two maps that can be compared channel by channel."""
    check_same_size(student, teacher)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            "student and teacher must have the same number of channels, got student "
            f"{shape_of(student)} and teacher {shape_of(teacher)}; add a 1x1 convolution to the "
            f"student, {student.shape[-1]} to {teacher.shape[-1]} channels "
            "(the adapter of a distillation term does that)"
        )


def check_labels(labels: jax.Array, array: jax.Array, owner: str) -> None:
    """Requires integer labels of the shape of a map without its channels."""
    check_label_dtype(labels)
    if labels.shape == array.shape[:-1]:
        return
    message = (
        f"labels must be {list(array.shape[:-1])}, one per pixel of the {owner}, "
        f"got {shape_of(labels)}"
    )
    if labels.shape == (*array.shape[:-3], *array.shape[-2:]):
        message += f"; the {owner} {shape_of(array)} seem to have their channels first, not last"
    raise ValueError(message)


def check_label_dtype(labels: jax.Array) -> None:
    """Requires integer labels."""
    if not jnp.issubdtype(dtype_of("labels", labels), jnp.integer):
        raise TypeError(
            f"labels must be integer class indices, got {labels.dtype} {shape_of(labels)}"
        )


def check_option(name: str, value: str, valid: Sequence[str]) -> None:
    """Requires one of the named options."""
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def check_positive(name: str, value: float | jax.Array) -> None:
    """Requires a finite number above zero. Traced values, as of a schedule, are not checked."""
    if not isinstance(value, Tracer) and not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value}")


def check_not_negative(name: str, value: float | jax.Array) -> None:
    """Requires a finite number that is zero or above. Traced values are not checked."""
    if not isinstance(value, Tracer) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be zero or a positive number, got {value}")


def resize(
    x: Float[Array, "*batch H W C"], size: tuple[int, ...], *, align_corners: bool = False
) -> Float[Array, "*batch h w C"]:
    """Resizes a map bilinearly without antialiasing, as PyTorch's `interpolate`.

    Args:
      x: The map.
      size: Height and width of the result.
      align_corners: True aligns the centers of the corner pixels, False the edges of the maps.
    """
    *batch, height, width, channels = x.shape
    if (height, width) == tuple(size):
        return x
    # A pooled image needs no interpolation, and TensorFlow Lite computes the general case wrongly.
    if (height, width) == (1, 1):
        return jnp.broadcast_to(x, (*batch, *size, channels))
    if align_corners:
        rows, columns = (
            resizing_weights(old, new, align_corners=True).astype(x.dtype)
            for old, new in zip((height, width), size, strict=True)
        )
        x = jnp.einsum("nh,...hwc->...nwc", rows, x)
        return jnp.einsum("mw,...nwc->...nmc", columns, x)
    return jax.image.resize(x, (*batch, *size, channels), method="bilinear", antialias=False)


def resizing_weights(
    size: int, new_size: int, *, align_corners: bool
) -> Float[Array, "new_size size"]:
    """Returns the matrix that interpolates one axis linearly from `size` to `new_size` places."""
    # Positions are integers in units of 1 / step, because float32 would lose the fraction.
    if align_corners:
        step = max(new_size - 1, 1)
        position = jnp.arange(new_size) * (size - 1)
    else:
        step = 2 * new_size
        position = (2 * jnp.arange(new_size) + 1) * size - new_size
    position = jnp.clip(position, 0, step * (size - 1))
    distance = jnp.abs(position[:, None] - step * jnp.arange(size))
    return jnp.maximum(step - distance, 0).astype(jnp.float32) / step


def sampling_weights(
    centres: Float[Array, " places"], size: Int[Array, ""], length: int
) -> Float[Array, "places length"]:
    """Returns the matrix that samples an axis linearly, for a size that is traced.

    Args:
      centres: Where to sample, in cells from the start of the axis; the first cell's center is at
        0.5. Positions beyond the outermost centers take the value of the edge.
      size: How many of the cells hold data.
      length: Of the axis, with padding.
    """
    places = jnp.clip(centres - 0.5, 0, jnp.maximum(size - 1, 0))
    return jnp.maximum(1 - jnp.abs(places[:, None] - jnp.arange(length)), 0)


def resize_labels(labels: Int[Array, "*batch H W"], size: tuple[int, ...]) -> Any:
    """Returns the label under the center of each cell of a map of `size`, `[..., h, w]`.

    The centers are those of bilinear resizing without aligned corners. PyTorch's "nearest" takes
    the upper left pixel of the cell instead.
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[..., rows, :][..., columns]


def max_pool(
    features: Float[Array, "*batch H W C"], rows: int, columns: int
) -> Float[Array, "*batch h w C"]:
    """Returns the maximum over disjoint windows. Those at the far edges may be cut off."""
    *batch, height, width, channels = features.shape
    down, across = -(-height // rows), -(-width // columns)
    padding = [(0, down * rows - height), (0, across * columns - width), (0, 0)]
    features = jnp.pad(features, [(0, 0)] * len(batch) + padding, constant_values=-jnp.inf)
    # One axis after the other: JAX refuses a reshape of both at once if the batch is split over a
    # mesh with Explicit axes.
    windows = features.reshape(*batch, down, rows, across * columns, channels)
    windows = windows.reshape(*batch, down, rows, across, columns, channels)
    return jnp.max(windows, axis=(-4, -2))
