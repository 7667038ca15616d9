"""Named maps and their specs; the 1x1 convolution that adapts one, and others that losses learn."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# The names of class scores.
SCORES = ("logits", "aux_logits")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["logits", "inputs", "kernel", "bias"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Classification:
    """Class scores, and the linear map that made them: `logits = inputs @ kernel + bias`.

    It may stand among the maps in place of the scores; losses that augment features need it.

    Attributes:
      logits: class scores [B, h, w, K].
      inputs: what the last 1x1 convolution read [B, h, w, A]: in training, after dropout.
      kernel: its kernel [A, K].
      bias: its bias [K].
    """

    logits: Float[Array, "B h w K"]
    inputs: Float[Array, "B h w A"]
    kernel: Float[Array, "A K"]
    bias: Float[Array, " K"]


Maps = Mapping[str, Array | Classification]
"""Maps [B, h, w, C] by name; "logits" is the name of the class scores."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of a map.

    Attributes:
      channels: C.
      stride: pixels of the image to a cell of the map; None where nobody said.
      size: h and w; None where nobody said.
      scores: whether it holds class scores.
      classified: A, the channels of what the classifier read; None where it is not known.
    """

    channels: int
    stride: int | None = None
    size: tuple[int, int] | None = None
    scores: bool = False
    classified: int | None = None

    def size_on(self, images: tuple[int, ...] | None) -> tuple[Any, Any]:
        """Height and width of the map on images of a size; "h" and "w" where that is not known."""
        if images is not None and self.stride:
            height, width = (-(-extent // self.stride) for extent in images)
            return height, width
        return self.size or ("h", "w")


def spec_of(name: str, value: Any, image_size: tuple[int, int] | None = None) -> Spec:
    """What is known of a map from an array, what stands for one, or a `Spec`.

    Args:
      name: of the map.
      value: an array or `jax.ShapeDtypeStruct` [B, h, w, C], a `Classification` of such, or a spec.
      image_size: height and width of the images, where they are known.

    Raises:
      ValueError: where the value is no map.
    """
    if isinstance(value, Spec):
        return dataclasses.replace(value, scores=value.scores or name in SCORES)
    classified = None
    if isinstance(value, Classification):
        classified = int(value.inputs.shape[-1])
        value = value.logits
    if len(getattr(value, "shape", ())) != 4:
        found = list(value.shape) if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f'the map "{name}" must be [B, h, w, C], channels last; it is {found}')
    _, height, width, channels = value.shape
    stride = None
    if image_size:
        stride = max(1, round(image_size[0] / height))
        if not fits((height, width), image_size, stride):
            raise ValueError(
                f'the map "{name}" is {list(value.shape)} on images of {image_size[0]} x '
                f"{image_size[1]}: no stride makes that of height and width, and channels are the "
                "last axis"
            )
    scores = name in SCORES or classified is not None
    return Spec(channels, stride, (height, width), scores, classified)


def fits(size: tuple[int, ...], image_size: tuple[int, ...], stride: int) -> bool:
    """Whether a map of a stride may have this height and width."""
    wanted = [-(-extent // stride) for extent in image_size]
    # Pooling whose last window may be cut off makes a row and a column more.
    return all(abs(found - right) <= 1 for found, right in zip(size, wanted, strict=True))


def array_of(value: Array | Classification) -> Float[Array, "B h w C"]:
    """The map itself."""
    return value.logits if isinstance(value, Classification) else value


Params = dict[str, Float[Array, "..."]]
_EPSILON = 1e-5


def init_adapter(
    key: PRNGKeyArray, channels: int, wanted: int, *, bias: bool = False, norm: bool = False
) -> Params:
    """Draws an adapter.

    Without bias by default, as CIRKD and TorchDistiller; drawn with variance 1 / channels, so that
    the scale of the student's map is kept.

    Args:
      key: for the kernel.
      channels: of the student's map.
      wanted: of the teacher's.
      bias: whether it has a bias.
      norm: whether a batch norm follows, with the statistics of the batch: an adapter is used in
        training alone, and keeps none.
    """
    initialize = jax.nn.initializers.lecun_normal()
    params = {"kernel": initialize(key, (channels, wanted), jnp.float32)}
    if bias:
        params["bias"] = jnp.zeros(wanted)
    if norm:
        params |= {"scale": jnp.ones(wanted), "shift": jnp.zeros(wanted)}
    return params


def adapt(params: Params, x: Float[Array, "B h w S"]) -> Float[Array, "B h w T"]:
    """Takes a map to the teacher's channels, in its own type."""
    y = x @ params["kernel"].astype(x.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(x.dtype)
    return batch_norm(params, y) if "scale" in params else y


def batch_norm(params: Params, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """Batch norm with the statistics of the batch, and the "scale" and "shift" of an adapter."""
    full = x.astype(jnp.float32)
    centred = full - full.mean((0, 1, 2))
    deviation = jnp.sqrt(jnp.square(centred).mean((0, 1, 2)) + _EPSILON)
    return (centred / deviation * params["scale"] + params["shift"]).astype(x.dtype)


def init_convolution(key: PRNGKeyArray, size: int, inputs: int, outputs: int) -> Params:
    """A convolution as PyTorch draws it: uniform, of variance 1 / (3 inputs size^2)."""
    bound = (size * size * inputs) ** -0.5
    shapes = {"kernel": (size, size, inputs, outputs), "bias": (outputs,)}
    return {
        name: jax.random.uniform(part, shape, minval=-bound, maxval=bound)
        for part, (name, shape) in zip(jax.random.split(key), shapes.items(), strict=True)
    }


def convolve(
    params: Params, x: Float[Array, "B h w C"], *, stride: int = 1, padding: Any = "SAME"
) -> Float[Array, "B i j D"]:
    """Convolves a map in its own type; `padding` is as `jax.lax.conv_general_dilated` takes it."""
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"].astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def blank(spec: Spec, images: tuple[int, ...]) -> Array | Classification:
    """A map of zeros on images of a size, as the spec says."""
    size = spec.size or tuple(-(-extent // (spec.stride or 1)) for extent in images)
    zeros = jnp.zeros((2, *size, spec.channels))
    if spec.classified is None:
        return zeros
    kernel = jnp.zeros((spec.classified, spec.channels))
    inputs = jnp.zeros((2, *size, spec.classified))
    return Classification(zeros, inputs, kernel, jnp.zeros(spec.channels))


def constant(leaf: Any) -> Any:
    """A leaf without gradient; keys and whole numbers have none."""
    return jax.lax.stop_gradient(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
