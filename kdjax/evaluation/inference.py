"""The views of an image that a network predicts: whole, sliding windows, scales, and mirror images.

All views follow mmsegmentation 1.2.2. Windows follow `EncoderDecoder.slide_inference`: the last
window of a row is shifted inward, and scores are summed and divided by the number of windows that
contain the pixel. Scales and mirror images follow `SegTTAModel.merge_preds`: the scores of each
view are resized to the image, and the probabilities of the views are averaged.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from kdjax.losses import sampling_weights
from kdjax.utils.errors import UserError

_STEPS = 1000  # scales are multiples of 1 / 1000, so that host and device round alike
MAX_SCALE = 10
# The largest side at any scale, in pixels. Beyond it, 32-bit integers overflow in `scaled`.
_MAX_SIDE = 2**31 // (2 * _STEPS) - 1

Look = Callable[[Float[Array, "B H W C"]], Float[Array, "B H W K"]]


@dataclasses.dataclass(frozen=True)
class Inference:
    """The views of an image that the network sees.

    Attributes:
      window: height and width of sliding windows, in pixels; None for whole images. A window is
        cut down to a smaller image.
      stride: rows and columns between neighboring windows; None for whole images.
      scales: the network sees the image at each of these sizes.
      flip: True to also show the mirror image at each scale.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if (self.window is None) != (self.stride is None):
            raise UserError("a window and its stride go together: give both or neither")
        for window, stride in zip(self.window or (), self.stride or (), strict=True):
            if not 0 < stride <= window <= _MAX_SIDE:
                raise UserError(
                    f"the stride is {self.stride} and the window {self.window}; a stride must be "
                    f"positive and not above the window, and a window at most {_MAX_SIDE} pixels"
                )
        for scale in self.scales:
            if not (0 < scale <= MAX_SCALE and abs(scale * _STEPS - round(scale * _STEPS)) < 1e-6):
                raise UserError(
                    f"scale {scale:g}: must be positive and at most {MAX_SCALE}, with at most "
                    "three decimals"
                )
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise UserError(f"scales are {self.scales}; name at least one, and each once")

    @property
    def is_one_view(self) -> bool:
        """True if `class_scores` returns logits, and not the mean probabilities of views."""
        return len(self.scales) == 1 and not self.flip

    @property
    def exact_below(self) -> tuple[int, int]:
        """Height and width from which every view fills a window, so that padding is harmless."""
        if self.window is None:
            return 0, 0
        steps = round(min(self.scales) * _STEPS)
        height, width = (-(-(_STEPS * side - _STEPS // 2) // steps) for side in self.window)
        return height, width

    def check_size(self, size: tuple[int, ...]) -> None:
        """Checks that images of this height and width have pixels at every scale.

        Raises:
          UserError: if a side has no pixels, or too many for 32-bit integers.
        """
        for scale in self.scales:
            height, width = (scaled(side, scale) for side in size)
            if not 0 < min(height, width) <= max(height, width) <= _MAX_SIDE:
                raise UserError(
                    f"at scale {scale:g}, {size[0]} x {size[1]} pixels become {height} x {width}; "
                    f"a side must have 1 to {_MAX_SIDE}"
                )


WHOLE = Inference()
MODES = ("whole", "slide")
# Padding is harmless for sliding windows, and saves a compilation for each size.
SLIDE_PAD_TO = 64


def make_inference(
    mode: str,
    window: Sequence[int] | None,
    stride: Sequence[int] | None,
    scales: Sequence[float],
    flip: bool,
    *,
    crop_size: Sequence[int] | None,
) -> Inference:
    """Returns the views that the options of `kdjax.evaluate` and `kdjax.predict` describe.

    Args:
      mode: "whole" or "slide".
      window: height and width of sliding windows; None for `crop_size`.
      stride: rows and columns between two windows; None for two thirds of the window.
      scales: see `Inference`.
      flip: see `Inference`.
      crop_size: the crop of the run that trained the network, if known.

    Raises:
      UserError: if the options do not go together, or a value is out of its range.
    """
    if mode not in MODES:
        raise UserError(f'--mode is "{mode}"; it must be {" or ".join(MODES)}')
    scales = tuple(map(float, scales))
    for name, pair in {"window": window, "stride": stride}.items():
        if pair is not None and mode == "whole":
            raise UserError(f"--{name} is for sliding windows; add --mode slide")
        if pair is not None and len(pair) != 2:
            raise UserError(f"--{name} is {pair!r}; give height and width, as 512,1024")
    if mode == "whole":
        return Inference(scales=scales, flip=flip)
    window = window or crop_size
    if not window:
        raise UserError("--window is missing: this network's crop is not known; give height,width")
    height, width = window
    rows, columns = stride or (max(2 * side // 3, 1) for side in window)
    return Inference((height, width), (rows, columns), scales, flip)


def padding(mode: str, pad_to: int | None, *, whole: int) -> int:
    """Returns the number whose multiples images are padded to.

    Args:
      mode: "whole" or "slide".
      pad_to: the number if the user gave one.
      whole: the default for whole images.
    """
    if pad_to is not None:
        return pad_to
    return SLIDE_PAD_TO if mode == "slide" else whole


def scaled(size: Any, scale: float) -> Any:
    """Returns a side, or an array of sides, at a scale: whole pixels, halves rounded up."""
    return (2 * size * round(scale * _STEPS) + _STEPS) // (2 * _STEPS)


def class_scores(
    look: Look,
    images: Shaped[Array, "B H W C"],
    sizes: Int[Array, "B 2"] | np.ndarray | None,
    inference: Inference,
) -> Float[Array, "B H W K"]:
    """Returns the scores of every pixel: logits for one view, else mean probabilities of all views.

    All windows have one shape, at all scales and in all images that are not smaller than a window,
    so that the network is compiled once.

    Args:
      look: the network, as a compiled function from pixels to logits of the same size.
      images: at the top left of their arrays.
      sizes: height and width of each image; None if the images fill their arrays. Windows stay
        inside the images, so that padding is harmless from `inference.exact_below` on. Whole
        images are shown with their padding.
      inference: the views.
    """
    height, width = images.shape[1:3]
    inference.check_size((height, width))
    own: Any = sizes
    if sizes is None or inference.window is None:
        own = np.broadcast_to(np.array([height, width], np.int32), (images.shape[0], 2))
    views = list(itertools.product(inference.scales, (False, True) if inference.flip else (False,)))
    total: Any = None
    for scale, mirrored in views:
        view, extents = _view(images, own, scale=scale)
        if inference.window is None or inference.stride is None:
            scores = _mirror(look(_mirror(view, mirrored=mirrored)), mirrored=mirrored)
        else:
            scores = _slide(look, view, extents, inference.window, inference.stride, mirrored)
        if scale != 1:
            scores = _resize(scores, extents, own, room=(height, width))
        if len(views) == 1:
            return scores
        total = _add_softmax(total, scores, share=1 / len(views))
    return total


def _slide(
    look: Look,
    images: Float[Array, "B H W C"],
    sizes: Int[Array, "B 2"],
    window: tuple[int, int],
    stride: tuple[int, int],
    mirrored: bool,
) -> Float[Array, "B H W K"]:
    """Returns the mean scores of the windows that contain a pixel, one window after the other."""
    batch, *room = images.shape[:3]
    shape = min(window[0], room[0]), min(window[1], room[1])
    grid = tuple(int(_windows(room[i] - shape[i], stride[i])) for i in range(2))
    sums = None
    for place in np.ndindex(*grid):
        windows = _Windows(shape, stride, mirrored)
        index = np.array(place, np.int32)
        scores = look(_cut(images, sizes, index, windows=windows))
        if sums is None:
            sums = tuple(
                jnp.zeros((batch, *room, channels), device=images.sharding)
                for channels in (scores.shape[-1], 1)
            )
        sums = _add(sums, scores, sizes, index, windows=windows)
    return _mean(sums)


class _Windows(NamedTuple):
    """The height and width of windows, their stride, and True if they are on the mirror image."""

    shape: tuple[int, int]
    stride: tuple[int, int]
    mirrored: bool

    def locate(self, sizes: Array, index: Array) -> tuple[Array, Array]:
        """Returns the top left of a window in each image [B, 2], and which images have it [B]."""
        last = jnp.maximum(sizes - jnp.array(self.shape), 0)  # the start of the last window
        start = jnp.minimum(index * jnp.array(self.stride), last)
        if self.mirrored:
            start = start.at[:, 1].set(last[:, 1] - start[:, 1])
        return start, jnp.all(index < _windows(last, jnp.array(self.stride)), axis=1)


@functools.partial(jax.jit, static_argnames="windows")
def _cut(images: Array, sizes: Array, index: Array, *, windows: _Windows) -> Array:
    """Returns one window of every image [B, h, w, C]."""
    start, _ = windows.locate(sizes, index)
    shape = (*windows.shape, images.shape[-1])
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), shape))
    return _mirror(cut(images, start), mirrored=windows.mirrored)


@functools.partial(jax.jit, static_argnames="windows", donate_argnums=0)
def _add(
    sums: tuple[Array, ...], scores: Array, sizes: Array, index: Array, *, windows: _Windows
) -> tuple[Array, ...]:
    """Adds a window's scores [B, h, w, K], and 1 to the count of its pixels."""
    start, seen = windows.locate(sizes, index)

    def add_at(total: Array, values: Array, at: Array) -> Array:
        old = jax.lax.dynamic_slice(total, (*at, 0), values.shape)
        return jax.lax.dynamic_update_slice(total, old + values, (*at, 0))

    # A small image in a large array has fewer windows than the array.
    scores = jnp.where(seen[:, None, None, None], scores, 0)
    times = jnp.broadcast_to(seen[:, None, None, None], (*scores.shape[:3], 1))
    added = _mirror(scores, mirrored=windows.mirrored), times.astype(jnp.float32)
    return tuple(jax.vmap(add_at)(*pair, start) for pair in zip(sums, added, strict=True))


@jax.jit
def _mean(sums: tuple[Array, Array]) -> Array:
    return sums[0] / jnp.maximum(sums[1], 1)


@functools.partial(jax.jit, static_argnames="mirrored")
def _mirror(x: Array, *, mirrored: bool) -> Array:
    return x[:, :, ::-1] if mirrored else x


@functools.partial(jax.jit, static_argnames="share")
def _add_softmax(total: Array | None, scores: Array, *, share: float) -> Array:
    probabilities = share * jax.nn.softmax(scores)
    return probabilities if total is None else total + probabilities


@functools.partial(jax.jit, static_argnames="scale")
def _view(images: Array, sizes: Array, *, scale: float) -> tuple[Array, Array]:
    """Returns the pixels as float32 at a scale, and the sizes of the images at that scale."""
    if scale == 1:
        return images.astype(jnp.float32), sizes
    extents = scaled(sizes, scale)
    room = scaled(images.shape[1], scale), scaled(images.shape[2], scale)
    return _resize(images.astype(jnp.float32), sizes, extents, room=room), extents


def _windows(last: Any, stride: Any) -> Any:
    """Returns the number of windows if the last one starts at `last`."""
    return (last + stride - 1) // stride + 1


@functools.partial(jax.jit, static_argnames="room")
def _resize(
    x: Float[Array, "B H W C"],
    sizes: Int[Array, "B 2"],
    wanted: Int[Array, "B 2"],
    *,
    room: tuple[int, int],
) -> Float[Array, "B h w C"]:
    """Resizes each image from its own size to another, bilinearly without antialiasing.

    Pixels beyond `sizes` have no influence. Pixels beyond `wanted` repeat the border.
    """
    rows, columns = (
        jax.vmap(_weights, (0, 0, None, None))(sizes[:, i], wanted[:, i], x.shape[1 + i], room[i])
        for i in range(2)
    )
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("bnh,bhwc->bnwc", rows, x, precision=exact)
    return jnp.einsum("bmw,bnwc->bnmc", columns, x, precision=exact)


def _weights(size: Array, wanted: Array, length: int, room: int) -> Float[Array, "room length"]:
    """Returns the weights from `size` of `length` pixels to `wanted` of `room` pixels."""
    centers = (jnp.arange(room) + 0.5) * (size / jnp.maximum(wanted, 1))
    return sampling_weights(centers, size, length)
