"""Af-DCD as a term."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.loss import Inputs, Metrics
from kdjax.distillation.methods.mgd import Generated
from kdjax.distillation.terms import term
from kdjax.utils.schema import COUNT, NOT_NEGATIVE, POSITIVE


class AfDCD(Generated):
    """Augmentation-free dense contrastive distillation: Fan et al. 2023.

    MGD's loss, plus a contrast between the generated map and the teacher's. Both maps are
    max-pooled, cut into patches of `patch` x `patch` positions, and their channels into `groups`.
    The vector of a position and group should be nearer to the teacher's own vector than to those of
    all other groups in the patch. `mask="centre"` is the authors' other mask.

    Attributes:
      alpha: as in MGD; the authors' constant on Cityscapes.
      contrast: weight of the contrast, which is a mean; 16 times the authors' constant on
        Cityscapes, since they sum over 16 groups.
      pool: rows and columns of the max-pooling windows.
      patch: positions along a side of a patch.
      groups: the number of groups into which the teacher's channels are cut.
      temperature: temperature of the contrast.
    """

    alpha = 2e-6
    contrast: Annotated[float, NOT_NEGATIVE] = 0.08
    pool: Annotated[int, COUNT] = 4
    patch: Annotated[int, COUNT] = 4
    groups: Annotated[int, COUNT] = 16
    temperature: Annotated[float, POSITIVE] = 0.07

    def check(self, student: Spec, teacher: Spec) -> None:
        if teacher.channels % self.groups:
            raise ValueError(
                f"groups must divide the teacher's {teacher.channels} channels, got {self.groups}"
            )

    def __call__(
        self, inputs: Inputs, params: PyTree, state: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        generated = self.generate(inputs, params)
        student, teacher = (self._patches(x) for x in (generated, inputs.teacher))
        contrast = jnp.mean(_patch_contrast(student, teacher, self.groups, self.temperature))
        imitation, distance = self.imitation(generated, inputs)
        return imitation + self.contrast * contrast, {"imitation": distance, "contrast": contrast}

    def _patches(self, x: Float[Array, "B h w C"]) -> Float[Array, "N B V d"]:
        """Returns the vectors of each patch, group by group within a position."""
        images, height, width, channels = x.shape
        cell = self.pool * self.patch
        down, across = height // cell, width // cell
        if not down * across:
            raise ValueError(
                f"compares patches of {self.patch} x {self.patch} after pooling by {self.pool}, "
                f"which takes maps of {cell} x {cell} or more, got {height} x {width}; lower pool "
                "or patch"
            )
        # The rest at the far edges is dropped, as in PyTorch's pooling.
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
    """Returns the cross-entropy of choosing the teacher's own vector among those of the patch."""
    group = jnp.arange(student.shape[2]) % groups
    # A vector competes with those of other groups, and not with other positions of its own group.
    among = (group[:, None] != group) | jnp.eye(len(group), dtype=bool)

    @jax.checkpoint
    def of_patch(pair: tuple[Array, Array]) -> Float[Array, "B V"]:
        mine, other = pair
        apart = jnp.sum(jnp.abs(mine[:, :, None] - other[:, None]), -1) / temperature
        scores = jnp.where(among, -apart, -jnp.inf)
        own = jnp.diagonal(apart, axis1=-2, axis2=-1)
        return jax.nn.logsumexp(scores, -1) + own

    # One patch at a time, because the table of differences has V x V x d entries for each image.
    return jax.lax.map(of_patch, (student, jax.lax.stop_gradient(teacher)))


METHODS = {"af_dcd": {"pixelwise_kl": term("pixelwise_kl"), "af_dcd": term("af_dcd")}}
BUILDS_ON = {"af_dcd": "pixelwise_kl"}
