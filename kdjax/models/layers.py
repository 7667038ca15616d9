"""Layers that several networks share."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float

from kdjax.losses import resize as resize
from kdjax.models.batch_norm import BatchNorm
from kdjax.models.convolution import convolution
from kdjax.models.depthwise import depthwise_convolution

Features = dict[str, Float[Array, "B h w C"]]
Rngs = nnx.Rngs | None  # random streams, which layers need only in training


class Common(TypedDict):
    """The arguments of every layer.

    Attributes:
      dtype: the type in which it computes. Its parameters are float32.
      rngs: the source of its initial parameters.
    """

    dtype: jnp.dtype
    rngs: nnx.Rngs


class ConvOptions(Common, total=False):
    """The arguments of a convolution; see `Conv`."""

    stride: int
    dilation: int
    same: bool


def normal(key: Array, shape: Sequence[int], scale: float) -> Array:
    """Draws a normal on the host. XLA needed 12 s to compile the draws of a ResNet-18."""

    def draw(words: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(np.asarray(words))
        return generator.standard_normal(shape, np.float32) * np.float32(scale)

    words = jax.random.key_data(key)
    # JAX also compiles a callback outside of a trace, and jnp.asarray.
    if not isinstance(words, Tracer):
        return jax.device_put(draw(np.asarray(words)))
    return jax.pure_callback(draw, jax.ShapeDtypeStruct(tuple(shape), jnp.float32), words)


def scaled(channels: int, width: int) -> int:
    """Returns published channels at another width, at least one. 64 is the published width."""
    return max(1, round(channels * width / 64))


def he_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initializes a kernel [h, w, in, out] like He et al. 2015 with fan_out, as mmsegmentation."""
    height, width, _, channels = shape
    return normal(key, shape, math.sqrt(2.0 / (height * width * channels))).astype(dtype)


class Conv(nnx.Conv):
    """A square convolution with PyTorch's padding, `dilation * (size - 1) // 2` on every side.

    `same` selects the padding of TensorFlow's "SAME", for weights trained with it: before an even
    side, a strided convolution has one pixel less.

    Attributes:
      plain: True computes any kernel as one convolution, for runtimes other than XLA. XLA has
        faster ways for some kernels.
    """

    depthwise = False

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        same: bool = False,
        kernel_init: nnx.Initializer = he_normal,
        **common: Unpack[Common],
    ):
        reach = dilation * (size - 1) // 2
        super().__init__(
            in_channels,
            channels,
            (size, size),
            strides=stride,
            kernel_dilation=dilation,
            padding="SAME" if same else ((reach, reach), (reach, reach)),
            feature_group_count=channels if self.depthwise else 1,
            use_bias=bias,
            kernel_init=kernel_init,
            **common,
        )
        self.plain = False

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolves, in the network's type."""
        if self.plain:
            return super().__call__(x)
        stride, dilation, padding = self._window(x)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        if stride > 1 and self.kernel_size == (1, 1):
            # If the slice is fused into the product, XLA for GPUs crashes (openxla/xla#47381).
            x, stride = jax.lax.optimization_barrier(x[:, ::stride, ::stride]), 1
        y = convolution(x, kernel, stride=stride, dilation=dilation, padding=padding)
        return y if bias is None else y + bias

    def _window(self, x: Array) -> tuple[int, int, Any]:
        """Returns stride, dilation, and the padding of both sides of a map."""
        stride, dilation = self.strides, self.kernel_dilation
        padding: Any = self.padding
        assert isinstance(stride, int)
        assert isinstance(dilation, int)
        if padding == "SAME":
            span = dilation * (self.kernel_size[0] - 1) + 1
            padding = jax.lax.padtype_to_pads(x.shape[1:3], (span, span), (stride, stride), padding)
        return stride, dilation, padding


class DepthwiseConv(Conv):
    """A square convolution of each channel by itself, padded like `Conv`."""

    depthwise = True

    def __init__(self, channels: int, size: int, **options: Any):
        super().__init__(channels, channels, size, **options)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "B H W C"]
    ) -> Float[Array, "B h w C"]:
        """Convolves, with sums in float32."""
        if self.plain:
            return super().__call__(x)
        stride, dilation, padding = self._window(x)
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
        total = depthwise_convolution(padded, self.kernel[:, :, 0], stride, dilation)
        if self.bias is not None:
            total = total + self.bias[...]
        return jnp.asarray(total, x.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm, and the activation, if any."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        *,
        depthwise: bool = False,
        norm: Callable[..., BatchNorm] = BatchNorm,
        activation: Callable[[Array], Array] | None = nnx.relu,
        **options: Unpack[ConvOptions],
    ):
        if depthwise:
            self.conv = DepthwiseConv(channels, size, **options)
        else:
            self.conv = Conv(in_channels, channels, size, **options)
        self.norm = norm(channels, dtype=options["dtype"], rngs=options["rngs"])
        self.activation = activation

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Applies convolution, norm, and activation. `train` updates the running statistics."""
        x = self.norm(self.conv(x), use_running_average=not train)
        return x if self.activation is None else self.activation(x)


class SeparableConvNorm(nnx.Module):
    """mmcv's separable convolution: 3x3 depthwise, then 1x1, each with batch norm and ReLU."""

    def __init__(
        self, in_channels: int, channels: int, *, dilation: int = 1, **common: Unpack[Common]
    ):
        self.depthwise = ConvNorm(
            in_channels, in_channels, 3, dilation=dilation, depthwise=True, **common
        )
        self.pointwise = ConvNorm(in_channels, channels, 1, **common)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W D"]:
        """Applies both; the map keeps its size."""
        return self.pointwise(self.depthwise(x, train=train), train=train)


def dilate(
    strides: Sequence[int], output_stride: int, *, entry: int
) -> tuple[list[int], list[int]]:
    """Replaces strides by dilations, so that maps stay larger (Chen et al., DeepLab).

    Args:
      strides: of successive layers.
      output_stride: the largest total stride. A layer that would exceed it dilates itself and all
        later layers instead.
      entry: total stride before these layers.

    Returns:
      Strides and dilations of the layers.
    """
    kept, dilations, total, dilation = [], [], entry, 1
    for stride in strides:
        if total * stride > output_stride:
            dilation, stride = dilation * stride, 1
        total *= stride
        kept.append(stride)
        dilations.append(dilation)
    return kept, dilations


def max_pool(x: Float[Array, "B H W C"], *, ceil: bool = False) -> Float[Array, "B h w C"]:
    """Max-pools 3x3 with stride 2 and padding 1, as the maximum of shifted strided slices.

    The gradient of XLA's window reduction is a select-and-scatter, which runs on one thread and
    takes six times longer on the CPU.

    Args:
      x: the map.
      ceil: let the last window of an even side extend beyond the map (PyTorch's ceil_mode), so that
        8 becomes 5 instead of 4.
    """
    for axis in (1, 2):
        length = x.shape[axis] // 2 + 1 if ceil else (x.shape[axis] - 1) // 2 + 1
        padding = [(0, 0)] * 4
        padding[axis] = (1, 2 if ceil else 1)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        taps = [
            jax.lax.slice_in_dim(padded, start, start + 2 * length - 1, 2, axis)
            for start in range(3)
        ]
        x = jnp.maximum(jnp.maximum(taps[0], taps[1]), taps[2])
    return x


def linear_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initializes a kernel with standard deviation 0.02, as mmsegmentation's transformers."""
    return normal(key, shape, 0.02).astype(dtype)


class Linear(nnx.Linear):
    """A linear map over the channels."""

    def __init__(
        self, in_channels: int, channels: int, *, bias: bool = True, **common: Unpack[Common]
    ):
        super().__init__(in_channels, channels, use_bias=bias, kernel_init=linear_normal, **common)


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the channels.

    Flax's default variance, the mean square less the squared mean, loses digits if the mean of a
    channel is large. This one is the variance of the centered values.
    """

    def __init__(self, channels: int, *, epsilon: float, **common: Unpack[Common]):
        super().__init__(channels, epsilon=epsilon, use_fast_variance=False, **common)


class DropPath(nnx.Dropout):
    """Drops a residual branch [B, H, W, C] for whole images (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float):
        super().__init__(rate, broadcast_dims=(1, 2, 3))


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Returns the rates of every stage's blocks, rising from 0 to `rate` over all blocks."""
    total = sum(depths)
    rates = iter([rate * i / (total - 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def gelu(x: Array) -> Array:
    """The exact GELU, as in PyTorch. JAX's default is an approximation."""
    return nnx.gelu(x, approximate=False)


class PatchEmbedding(nnx.Module):
    """A strided convolution, then layer norm."""

    def __init__(self, projection: nnx.Conv, *, epsilon: float, **common: Unpack[Common]):
        self.projection = projection
        self.norm = LayerNorm(projection.out_features, epsilon=epsilon, **common)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Embeds the patches."""
        return self.norm(self.projection(x))


class TransformerBlock(nnx.Module):
    """Attention and a feed-forward network, each after a layer norm and inside a shortcut.

    A subclass sets the parts.
    """

    norm1: LayerNorm
    attention: Callable[[Array], Array]
    norm2: LayerNorm
    ffn: Callable[[Array], Array]
    drop_path: DropPath

    def __call__(self, x: Array, *, train: bool, rngs: Rngs) -> Float[Array, "B H W C"]:
        """Adds both branches. `train` drops each branch for some of the images."""
        drop_path = partial(self.drop_path, deterministic=not train, rngs=rngs)
        x = x + drop_path(self.attention(self.norm1(x)))
        return x + drop_path(self.ffn(self.norm2(x)))


def split_heads(x: Float[Array, "... T C"], heads: int) -> Float[Array, "... T N D"]:
    """Splits the channels into `heads` groups."""
    return x.reshape(*x.shape[:-1], heads, -1)


def attend(
    query: Float[Array, "... T N D"],
    key: Float[Array, "... S N D"],
    value: Float[Array, "... S N D"],
    bias: Float[Array, "... N T S"] | None = None,
) -> Float[Array, "... T C"]:
    """Multi-head scaled dot-product attention, with a softmax in float32.

    Args:
      query: queries of the N heads.
      key: keys.
      value: values.
      bias: added to the scores before the softmax.

    Returns:
      The attended values with the heads' channels joined, C = N * D.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum(
        "...tnd,...snd->...nts", query * scale, key, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores).astype(value.dtype)
    attended = jnp.einsum("...nts,...snd->...tnd", weights, value)
    return attended.reshape(*attended.shape[:-2], -1)
