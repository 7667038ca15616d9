"""The layers that networks share: convolution with batch norm, pooling; then the transformers'."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float

from kdjax.losses import resize as resize
from kdjax.models.batch_norm import BatchNorm
from kdjax.models.depthwise import depthwise_convolution


def normal(key: Array, shape: Sequence[int], scale: float) -> Array:
    """Draws a normal on the host: compiling a draw per layer took XLA 12 s for a ResNet-18."""

    def draw(words: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(np.asarray(words))
        return generator.standard_normal(shape, np.float32) * np.float32(scale)

    words = jax.random.key_data(key)
    # A callback by itself is compiled, too, and so is jnp.asarray.
    if not isinstance(words, Tracer):
        return jax.device_put(draw(np.asarray(words)))
    return jax.pure_callback(draw, jax.ShapeDtypeStruct(tuple(shape), jnp.float32), words)


def scaled(channels: int, width: int) -> int:
    """Returns published channels at another width (64 is as published), at least one."""
    return max(1, round(channels * width / 64))


def he_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initialises a kernel [h, w, in, out] after He et al. 2015 with fan_out, as mmsegmentation."""
    height, width, _, channels = shape
    return normal(key, shape, math.sqrt(2.0 / (height * width * channels))).astype(dtype)


class Conv(nnx.Conv):
    """A square convolution padded as PyTorch pads it: `dilation * (size - 1) // 2` on every side.

    `same` pads as TensorFlow's "SAME", for weights that were trained so: a strided convolution of
    an even side has one pixel less in front.

    Attributes:
      plain: compute it as one convolution, whatever its kernel. False is for XLA, which has faster
        ways of some; True for other runtimes, which are fast at what they know.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        same: bool = False,
        kernel_init: nnx.Initializer = he_normal,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        reach = dilation * (size - 1) // 2
        super().__init__(
            in_channels,
            channels,
            (size, size),
            strides=stride,
            kernel_dilation=dilation,
            padding="SAME" if same else ((reach, reach), (reach, reach)),
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.plain = False

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolves; a kernel of one pixel is a product of matrices.

        That is a third faster on the CPU, forward and backward, and the same elsewhere.
        """
        if self.plain or self.kernel_size != (1, 1) or self.feature_group_count > 1:
            return super().__call__(x)
        stride = self.strides
        assert isinstance(stride, int)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[0, 0], bias), dtype=self.dtype)
        if stride > 1:
            # Fused into the product, the slice ends XLA's compiler for GPUs (openxla/xla#47381).
            x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
        y = jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))
        return y if bias is None else y + bias


class DepthwiseConv(Conv):
    """A square convolution of each channel by itself, as the sum of shifted products.

    Padded as `Conv`. XLA fuses the sum; its own grouped convolution took ten times longer and more
    on the CPU.
    """

    def __init__(self, channels: int, size: int, **options: Any):
        super().__init__(channels, channels, size, groups=channels, **options)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "B H W C"]
    ) -> Float[Array, "B h w C"]:
        """Convolves; the products are summed in float32."""
        if self.plain:
            return super().__call__(x)
        size, stride, dilation = self.kernel_size[0], self.strides, self.kernel_dilation
        assert isinstance(stride, int)
        assert isinstance(dilation, int)
        padding: Any = self.padding
        if padding == "SAME":
            span = dilation * (size - 1) + 1
            padding = jax.lax.padtype_to_pads(x.shape[1:3], (span, span), (stride, stride), padding)
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
        total = depthwise_convolution(padded, self.kernel[:, :, 0], stride, dilation)
        if self.bias is not None:
            total = total + self.bias[...]
        return jnp.asarray(total, x.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch norm, then the activation, if any."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        same: bool = False,
        depthwise: bool = False,
        norm: Callable[..., BatchNorm] = BatchNorm,
        activation: Callable[[Array], Array] | None = nnx.relu,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        layout: dict[str, Any] = {
            "stride": stride,
            "dilation": dilation,
            "same": same,
            "dtype": dtype,
            "rngs": rngs,
        }
        if depthwise:
            assert in_channels == channels
            self.conv = DepthwiseConv(channels, size, **layout)
        else:
            self.conv = Conv(in_channels, channels, size, **layout)
        self.norm = norm(channels, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Applies the three; `train` uses batch statistics and updates the running ones."""
        x = self.norm(self.conv(x), use_running_average=not train)
        return x if self.activation is None else self.activation(x)


class SeparableConvNorm(nnx.Module):
    """A 3x3 convolution of each channel by itself, then 1x1 across channels (mmcv's module).

    Batch norm and a ReLU follow both.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        dilation: int = 1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.depthwise = ConvNorm(
            in_channels,
            in_channels,
            3,
            dilation=dilation,
            depthwise=True,
            dtype=dtype,
            rngs=rngs,
        )
        self.pointwise = ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W D"]:
        """Applies both; the map keeps its size."""
        return self.pointwise(self.depthwise(x, train=train), train=train)


def dilate(
    strides: Sequence[int], output_stride: int, *, entry: int
) -> tuple[list[int], list[int]]:
    """Trades strides for dilations (Chen et al., DeepLab): maps stay larger, weights mean the same.

    Args:
      strides: of layers one behind the other.
      output_stride: of all of them together, at most; what goes beyond dilates this and all later
        layers instead.
      entry: stride of what stands before them.

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

    The gradient of XLA's own window reduction is a select-and-scatter, which runs on one thread
    on the CPU and took six times longer there.

    Args:
      x: the map.
      ceil: let the last window of an even side hang over (PyTorch's ceil_mode), so that 8 becomes
        5 and not 4.
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
    """Initialises a kernel with standard deviation 0.02, as mmsegmentation's transformers."""
    return normal(key, shape, 0.02).astype(dtype)


class Linear(nnx.Linear):
    """A linear map over the channels."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        bias: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_channels, channels, use_bias=bias, kernel_init=linear_normal, dtype=dtype, rngs=rngs
        )


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the channels.

    The variance is that of the centred values: Flax's default, the mean of squares less the square
    of the mean, loses digits where a channel's mean is large.
    """

    def __init__(self, channels: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(channels, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


class DropPath(nnx.Dropout):
    """Drops a residual branch [B, H, W, C] for whole images (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float):
        super().__init__(rate, broadcast_dims=(1, 2, 3))


def gelu(x: Array) -> Array:
    """The exact GELU, by the error function as in PyTorch; JAX's default approximates it."""
    return nnx.gelu(x, approximate=False)


def split_heads(x: Float[Array, "... T C"], heads: int) -> Float[Array, "... T N D"]:
    """Splits the channels into `heads` groups."""
    return x.reshape(*x.shape[:-1], heads, -1)


def attend(
    query: Float[Array, "... T N D"],
    key: Float[Array, "... S N D"],
    value: Float[Array, "... S N D"],
    bias: Float[Array, "... N T S"] | None = None,
) -> Float[Array, "... T C"]:
    """Multi-head scaled dot-product attention; the softmax is taken in float32.

    Args:
      query: queries of the N heads.
      key: keys.
      value: values.
      bias: what is added to the scores before the softmax.

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


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Returns the rates of every stage's blocks, rising from 0 to `rate` over all blocks."""
    total = sum(depths)
    rates = iter([rate * i / (total - 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
