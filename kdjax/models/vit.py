"""The Vision Transformers of DINOv2 (Oquab et al. 2023) and DINOv3 (Siméoni et al. 2025).

The outputs are those of HuggingFace's `Dinov2Model`, `Dinov2WithRegistersModel`, and
`DINOv3ViTModel`, and of their backbones.
"""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import (
    Common,
    Features,
    LayerNorm,
    Linear,
    Rngs,
    attend,
    gelu,
    linear_normal,
    resize,
    split_heads,
)
from kdjax.models.outputs import STAGES, FeatureSpec
from kdjax.utils.errors import UserError

ROTARY_BASE = 100.0


class Variant(NamedTuple):
    """The settings of a Vision Transformer.

    Attributes:
      heads: attention heads, each of 64 channels.
      depth: number of blocks.
      patch: height and width of a patch, in pixels.
      expansion: channels inside a feed-forward network, per channel of the input.
      gated: True for SwiGLU in place of GELU.
      registers: number of register tokens.
      grid: rows and columns of the learned position embeddings; 0 for rotary ones.
      antialias: True if position embeddings are resized with antialiasing.
      epsilon: of the layer norms.
    """

    heads: int
    depth: int
    patch: int = 14
    expansion: float = 4
    gated: bool = False
    registers: int = 0
    grid: int = 37
    antialias: bool = False
    epsilon: float = 1e-6


_DINOV2 = {
    "dinov2_s": Variant(6, 12),
    "dinov2_b": Variant(12, 12),
    "dinov2_l": Variant(16, 24),
    "dinov2_g": Variant(24, 40, expansion=8 / 3, gated=True),
}
_DINOV3 = {
    "dinov3_s": Variant(6, 12),
    "dinov3_splus": Variant(6, 12, gated=True),
    "dinov3_b": Variant(12, 12),
    "dinov3_l": Variant(16, 24),
    "dinov3_hplus": Variant(20, 32, gated=True),
}
VARIANTS: dict[str, Variant] = {
    **_DINOV2,
    **{
        f"{name}_reg": variant._replace(registers=4, antialias=True)
        for name, variant in _DINOV2.items()
    },
    **{
        name: variant._replace(patch=16, registers=4, grid=0, epsilon=1e-5)
        for name, variant in _DINOV3.items()
    },
}


def bicubic_matrix(size: int, new_size: int, *, antialias: bool) -> Float[np.ndarray, "new size"]:
    """Returns the matrix of PyTorch's bicubic interpolation along one axis.

    Without antialiasing, PyTorch's cubic has the coefficient -0.75, and places outside of the axis
    have the value of its end. With antialiasing, the coefficient is -0.5, places outside are left
    out, and the cubic is stretched if the axis shrinks.
    """
    scale = size / new_size
    centers = (np.arange(new_size) + 0.5) * scale - 0.5
    if antialias:
        distances = np.arange(size) - centers[:, None]
        weights = _cubic(distances / max(scale, 1.0), -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    matrix = np.zeros((new_size, size))
    first = np.floor(centers).astype(int)
    for tap in range(-1, 3):
        places = np.clip(first + tap, 0, size - 1)
        matrix[np.arange(new_size), places] += _cubic(first + tap - centers, -0.75)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Returns Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


class Rotation(NamedTuple):
    """Cosine and sine of the angle by which each channel of each token is rotated, `[T, 1, D]`."""

    cosine: np.ndarray
    sine: np.ndarray

    @classmethod
    def of(cls, height: int, width: int, *, channels: int, unrotated: int) -> "Rotation":
        """Returns DINOv3's rotations for a map of patches.

        Args:
          height: rows of the map. The center of a patch lies between -1 and 1 in both directions.
          width: columns of the map.
          channels: of a head, a multiple of 4.
          unrotated: number of tokens before the patches.
        """
        places = [2 * (np.arange(size) + 0.5) / size - 1 for size in (height, width)]
        grid = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 2, 1)
        periods = ROTARY_BASE ** (np.arange(channels // 4) / (channels // 4))
        angles = np.tile((2 * np.pi * grid / periods).reshape(height * width, -1), 2)
        angles = np.concatenate([np.zeros((unrotated, channels)), angles])[:, None]
        return cls(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T N D"]:
        """Rotates the pairs of channels c and c + D / 2, in float32."""
        first, second = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
        return (x * self.cosine + turned * self.sine).astype(x.dtype)


class Attention(nnx.Module):
    """Attention of every token to all tokens.

    The keys of DINOv3 have no bias. Here it is zero at first, and a student may train it.
    """

    def __init__(self, channels: int, heads: int, **common: Unpack[Common]):
        self.heads = heads
        self.in_projection = Linear(channels, 3 * channels, **common)
        self.out_projection = Linear(channels, channels, **common)

    def __call__(
        self, x: Float[Array, "B T C"], rotation: Rotation | None
    ) -> Float[Array, "B T C"]:
        """Attends. `rotation` rotates queries and keys."""
        projected = jnp.split(self.in_projection(x), 3, axis=-1)
        query, key, value = (split_heads(part, self.heads) for part in projected)
        if rotation:
            query, key = rotation(query), rotation(key)
        return self.out_projection(attend(query, key, value))


class FeedForward(nnx.Module):
    """Two linear maps with GELU between them, or SwiGLU: silu(gate) * value."""

    def __init__(self, channels: int, hidden: int, *, gated: bool, **common: Unpack[Common]):
        self.gated = gated
        self.expand = Linear(channels, 2 * hidden if gated else hidden, **common)
        self.contract = Linear(hidden, channels, **common)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Applies the network to every token."""
        x = self.expand(x)
        if self.gated:
            gate, value = jnp.split(x, 2, axis=-1)
            return self.contract(jax.nn.silu(gate) * value)
        return self.contract(gelu(x))


class LayerScale(nnx.Module):
    """A learned factor for each channel."""

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Scales the channels."""
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """Attention and a feed-forward network, each between a layer norm and a layer scale."""

    def __init__(self, channels: int, variant: Variant, **common: Unpack[Common]):
        hidden = round(variant.expansion * channels)
        self.norm1 = LayerNorm(channels, epsilon=variant.epsilon, **common)
        self.attention = Attention(channels, variant.heads, **common)
        self.scale1 = LayerScale(channels)
        self.norm2 = LayerNorm(channels, epsilon=variant.epsilon, **common)
        self.ffn = FeedForward(channels, hidden, gated=variant.gated, **common)
        self.scale2 = LayerScale(channels)

    def __call__(
        self, x: Float[Array, "B T C"], rotation: Rotation | None
    ) -> Float[Array, "B T C"]:
        """Adds both branches."""
        x = x + self.scale1(self.attention(self.norm1(x), rotation))
        return x + self.scale2(self.ffn(self.norm2(x)))


class VisionTransformer(nnx.Module):
    """A Vision Transformer of DINOv2 or DINOv3.

    Position embeddings are resized as HuggingFace does. DINOv2's authors add 0.1 to the number of
    patches before they compute the scale of the resizing.

    Args:
      name: a key of `VARIANTS`.
      width: channels of a head; 64 is the published network.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    def __init__(
        self, name: str, *, width: int = 64, in_channels: int = 3, **common: Unpack[Common]
    ):
        variant = VARIANTS[name]
        if not variant.grid and width % 4:
            raise UserError(f"the width is {width}; that of {name} must be a multiple of 4")
        self.variant, channels = variant, variant.heads * width
        self.feature_specs = {stage: FeatureSpec(channels, variant.patch) for stage in STAGES}
        patch = (variant.patch, variant.patch)
        self.embedding = nnx.Conv(
            in_channels,
            channels,
            patch,
            strides=patch,
            padding="VALID",
            kernel_init=linear_normal,
            **common,
        )

        def tokens(count: int) -> nnx.Param:
            key = common["rngs"].params()
            return nnx.Param(linear_normal(key, (1, count, channels), jnp.dtype("float32")))

        self.cls_token = tokens(1)
        self.register_tokens = tokens(variant.registers) if variant.registers else None
        self.pos_embed = tokens(1 + variant.grid**2) if variant.grid else None
        self.blocks = nnx.List([Block(channels, variant, **common) for _ in range(variant.depth)])
        self.norm = LayerNorm(channels, epsilon=variant.epsilon, **common)

    def __call__(self, images: Array, *, train: bool, rngs: Rngs) -> Features:
        """Returns the normalized patch tokens after each quarter of the blocks.

        "stage1" to "stage4" are `[B, ceil(H / patch), ceil(W / patch), C]`. "stage4" is the last
        hidden state. Images whose sides are no multiples of the patch are resized to the next
        multiple, so that the maps cover the whole image.
        """
        del train, rngs
        variant = self.variant
        height, width = (-(-side // variant.patch) for side in images.shape[1:3])
        images = resize(images, (height * variant.patch, width * variant.patch))
        x = self.embedding(images)
        batch, _, _, channels = x.shape
        x, rotation = self._with_tokens(x), None
        first = x.shape[1] - height * width
        if not variant.grid:
            head = channels // variant.heads
            rotation = Rotation.of(height, width, channels=head, unrotated=first)
        ends = {-(-variant.depth * quarter // 4): name for quarter, name in enumerate(STAGES, 1)}
        features = {}
        for number, block in enumerate(self.blocks, 1):
            x = block(x, rotation)
            if number in ends:
                patches = self.norm(x)[:, first:]
                features[ends[number]] = patches.reshape(batch, height, width, channels)
        return features

    def _with_tokens(self, x: Float[Array, "B h w C"]) -> Float[Array, "B T C"]:
        """Returns class token, registers, and patches, with position embeddings if there are any.

        Registers have no position.
        """
        batch, height, width, channels = x.shape
        first = self.cls_token[...]
        if self.pos_embed is not None:
            grid, table = self.variant.grid, self.pos_embed[...]
            first = first + table[:, :1]
            rows, columns = (
                bicubic_matrix(grid, size, antialias=self.variant.antialias)
                for size in (height, width)
            )
            positions = jnp.einsum(
                "hr,wc,rcd->hwd",
                rows,
                columns,
                table[0, 1:].reshape(grid, grid, channels),
                precision=jax.lax.Precision.HIGHEST,
            )
            x = x + positions.astype(x.dtype)
        tokens = [first]
        if self.register_tokens is not None:
            tokens.append(self.register_tokens[...])
        tokens = [jnp.broadcast_to(t.astype(x.dtype), (batch, *t.shape[1:])) for t in tokens]
        return jnp.concatenate([*tokens, x.reshape(batch, -1, channels)], axis=1)
