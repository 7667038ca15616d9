"""Losses that learn a small network of their own: MGD's generator, and AttnFD's attention."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics, Names
from kdjax.distillation.maps import (
    Params,
    Spec,
    adapt,
    batch_norm,
    convolve,
    init_adapter,
    init_convolution,
)

MASKS = ("pixels", "channels", "centre")


class _Generated(Loss):
    """The teacher's map, made by two 3x3 convolutions from the student's masked map.

    The convolutions are drawn as PyTorch draws them. They have 18 C^2 weights for the C channels of
    the teacher, often more than the student.

    Attributes:
      alpha: Weight of the squared distance, summed over pixels and channels and averaged over
        images. It is the authors' constant, so that the loss grows with the map as theirs does.
      masked: Share of the student's map that is set to 0.
      mask: What is masked: random pixels, random channels, or the center of the map.
    """

    student: Names = "stage4"
    teacher: Names | None = "stage4"
    adapter_bias: bool = True
    alpha: float = 2e-5
    masked: float = 0.75
    mask: Literal["pixels", "channels", "centre"] = "pixels"

    def check(self, student: Spec, teacher: Spec) -> None:
        if self.mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {self.mask!r}")
        if not 0 <= self.masked <= 1:
            raise ValueError(f"masked is a share, 0 to 1, got {self.masked}")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be zero or a positive number, got {self.alpha}")

    def init_params(self, key: PRNGKeyArray, student: Spec, teacher: Spec) -> dict[str, Params]:
        first, second = jax.random.split(key)
        return {
            "first": init_convolution(first, 3, student.channels, teacher.channels),
            "second": init_convolution(second, 3, teacher.channels, teacher.channels),
        }

    def generate(self, inputs: Inputs, params: PyTree) -> Float[Array, "B h w C"]:
        """The teacher's map, from what is left of the student's."""
        x = jnp.where(self._kept(inputs), inputs.student, 0)
        return convolve(params["second"], jax.nn.relu(convolve(params["first"], x)))

    def _kept(self, inputs: Inputs) -> Array:
        images, height, width, channels = inputs.student.shape
        if self.mask == "centre":
            rows, columns = (
                (at >= size // 3) & (at < 2 * size // 3)
                for at, size in ((jnp.arange(height), height), (jnp.arange(width), width))
            )
            return ~(rows[:, None] & columns)[:, :, None]
        # A number each, on any number of devices.
        pixels = self.mask == "pixels"
        shape = (images, height, width, 1) if pixels else (images, 1, 1, channels)
        return jax.random.bernoulli(inputs.key, 1 - self.masked, shape)


class MGD(_Generated):
    """Masked generative distillation: Yang et al. 2022.

    `alpha` is the authors' weight on a sum. `mask="channels"` is mmrazor's option for classifiers.
    """

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        distance = jnp.mean(losses.l2(self.generate(inputs, params), inputs.teacher))
        return self.alpha * math.prod(inputs.teacher.shape[1:]) * distance


class AfDCD(_Generated):
    """Augmentation-free dense contrastive distillation: Fan et al. 2023.

    MGD's loss, plus a contrast between the generated map and the teacher's. Both maps are
    max-pooled, cut into patches of `patch` x `patch` positions, and their channels into `groups`.
    The vector of a position and group should be nearer to the teacher's own vector than to those of
    all other groups in the patch. `mask="centre"` is the authors' other mask.

    Attributes:
      alpha: As in MGD; the authors' constant on Cityscapes.
      contrast: Weight of the contrast, which is a mean; 16 times the authors' constant on
        Cityscapes, since they sum over 16 groups.
      pool: Rows and columns of the max-pooling windows.
      patch: Positions along a side of a patch.
      groups: How many groups the teacher's channels are cut into.
      temperature: Of the contrast.
    """

    alpha: float = 2e-6
    contrast: float = 0.08
    pool: int = 4
    patch: int = 4
    groups: int = 16
    temperature: float = 0.07

    def check(self, student: Spec, teacher: Spec) -> None:
        super().check(student, teacher)
        if min(self.pool, self.patch, self.groups) < 1 or teacher.channels % self.groups:
            raise ValueError(
                f"pool, patch and groups must be positive, and groups divide the teacher's "
                f"{teacher.channels} channels; they are {self.pool}, {self.patch}, {self.groups}"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number, got {self.temperature}")

    def __call__(
        self, inputs: Inputs, params: PyTree, state: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        made = self.generate(inputs, params)
        student, teacher = (self._patches(x) for x in (made, inputs.teacher))
        contrast = _patch_contrast(student, teacher, self.groups, self.temperature)
        parts = {
            "imitation": jnp.mean(losses.l2(made, inputs.teacher)),
            "contrast": jnp.mean(contrast),
        }
        imitation = self.alpha * math.prod(inputs.teacher.shape[1:]) * parts["imitation"]
        return imitation + self.contrast * parts["contrast"], parts

    def _patches(self, x: Float[Array, "B h w C"]) -> Float[Array, "N B V d"]:
        """The vectors of each patch, group by group within a position."""
        images, height, width, channels = x.shape
        cell = self.pool * self.patch
        down, across = height // cell, width // cell
        if not down * across:
            raise ValueError(
                f"compares patches of {self.patch} x {self.patch} after pooling by {self.pool}, "
                f"which takes maps of {cell} x {cell} or more, got {height} x {width}; lower pool "
                "or patch"
            )
        # What is left over at the far edges is dropped, as by pooling in PyTorch.
        x = x[:, : down * cell, : across * cell].astype(jnp.float32)
        sizes = (down, self.patch, self.pool, across, self.patch, self.pool)
        x = x.reshape(images, *sizes, self.groups, channels // self.groups).max((3, 6))
        x = jnp.transpose(x, (1, 3, 0, 2, 4, 5, 6))
        return x.reshape(down * across, images, -1, x.shape[-1])


def _patch_contrast(
    student: Float[Array, "N B V d"],
    teacher: Float[Array, "N B V d"],
    groups: int,
    temperature: float,
) -> Float[Array, "N B V"]:
    """How far each vector of the student is from choosing the teacher's among the others."""
    group = jnp.arange(student.shape[2]) % groups
    # Of its own group there is its own position alone.
    among = (group[:, None] != group) | jnp.eye(len(group), dtype=bool)

    @jax.checkpoint
    def of_patch(pair: tuple[Array, Array]) -> Float[Array, "B V"]:
        mine, other = pair
        apart = jnp.sum(jnp.abs(mine[:, :, None] - other[:, None]), -1) / temperature
        scores = jnp.where(among, -apart, -jnp.inf)
        own = jnp.diagonal(apart, axis1=-2, axis2=-1)
        return jax.nn.logsumexp(scores, -1) + own

    # A patch at a time: the table of differences has V x V x d entries for an image.
    return jax.lax.map(of_patch, (student, jax.lax.stop_gradient(teacher)))


class AttnFD(Loss):
    """Attention-guided feature distillation: Mansourian et al. 2024, our clean reading.

    Of every image and map, the squared distance of refined features of length 1, summed over the
    maps. The student's are refined by a learned CBAM and a 1x1 convolution with batch norm; the
    teacher's by a CBAM without parameters, which the authors' code has and their networks, whose
    teacher's CBAM is random, do not use (docs/methods/attn_fd.md). The authors' weight, 2 on a
    distance that is divided by 6, their images of a batch, once more.
    """

    student: Names = ("stage4", "head")
    teacher: Names | None = ("stage4", "head")
    weight: float = 0.33
    adapter: str = "never"
    reduction: int = 16

    def check(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> None:
        if not isinstance(student, tuple) or not isinstance(teacher, tuple):
            raise ValueError('reads several maps a side: name them in a tuple, as ("head",)')
        if self.reduction < 1:
            raise ValueError(f"reduction must be positive, got {self.reduction}")

    def init_params(
        self, key: PRNGKeyArray, student: tuple[Spec, ...], teacher: tuple[Spec, ...]
    ) -> list[dict[str, Params]]:
        def of_map(key: PRNGKeyArray, channels: int, wanted: int) -> dict[str, Params]:
            squeeze, expand, spatial, connector = jax.random.split(key, 4)
            hidden = max(channels // self.reduction, 1)
            # The batch norm takes out a bias.
            kernel = init_convolution(spatial, 7, 2, 1)["kernel"]
            return {
                "squeeze": init_convolution(squeeze, 1, channels, hidden),
                "expand": init_convolution(expand, 1, hidden, channels),
                "spatial": {"kernel": kernel, "scale": jnp.ones(1), "shift": jnp.zeros(1)},
                "connector": init_adapter(connector, channels, wanted, norm=True),
            }

        return [
            of_map(jax.random.fold_in(key, index), mine.channels, other.channels)
            for index, (mine, other) in enumerate(zip(student, teacher, strict=True))
        ]

    def __call__(
        self, inputs: Inputs, params: list[dict[str, Params]], state: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        apart = {}
        for name, learned, mine, other in zip(
            self.names("student"), params, inputs.student, inputs.teacher, strict=True
        ):
            student = adapt(learned["connector"], _attend(mine, learned))
            teacher = _attend(jax.lax.stop_gradient(other))
            difference = _of_length_one(student) - _of_length_one(teacher)
            apart[name] = jnp.mean(jnp.sum(jnp.square(difference), (1, 2, 3)))
        return sum(apart.values(), jnp.zeros(())), apart


def _attend(
    x: Float[Array, "B h w C"], params: dict[str, Params] | None = None
) -> Float[Array, "B h w C"]:
    """CBAM: a gate for each channel, then one for each pixel; without parameters, of sums alone."""

    def pooled(x: Array, axes: int | tuple[int, ...]) -> tuple[Array, Array]:
        return jnp.max(x, axes, keepdims=True), jnp.mean(x, axes, keepdims=True)

    largest, mean = pooled(x, (1, 2))
    if params is not None:
        squeeze, expand = params["squeeze"], params["expand"]
        largest, mean = (
            convolve(expand, jax.nn.relu(convolve(squeeze, side))) for side in (largest, mean)
        )
    x = x * jax.nn.sigmoid(largest + mean)
    largest, mean = pooled(x, -1)
    gate = largest + mean
    if params is not None:
        spatial = params["spatial"]
        gate = batch_norm(spatial, convolve(spatial, jnp.concatenate((largest, mean), -1)))
    return x * jax.nn.sigmoid(gate)


def _of_length_one(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), (1, 2, 3), keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 1e-16, square, 1.0))
