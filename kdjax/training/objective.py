"""What a step minimises: cross-entropy, auxiliary cross-entropy and the distillation terms."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from kdjax import losses
from kdjax.classes import IGNORE_LABEL
from kdjax.distillation import Classification, Distiller, Maps
from kdjax.distillation.loss import Metrics
from kdjax.distillation.maps import array_of


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum that trains a student.

    Attributes:
      cross_entropy: weight of the cross-entropy with the labels.
      auxiliary: weight of the auxiliary head's cross-entropy.
      distiller: the distillation terms; None for a plain student.
      mean_over: the pixels over which both cross-entropies are averaged: those that have a label,
        or all, where ignored ones count as 0, as in mmsegmentation.
    """

    cross_entropy: float
    auxiliary: float
    distiller: Distiller | None = None
    mean_over: Literal["labelled", "all"] = "labelled"

    def __call__(
        self,
        student: Maps,
        teacher: Maps | None,
        labels: Int[Array, "B H W"],
        params: PyTree,
        state: PyTree,
        *,
        step: Int[Array, ""],
        steps: int,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        """Returns the loss, and what the terms carry with the loss's parts by name, unweighted.

        Args:
          student: the student's maps on the batch.
          teacher: the teacher's on the same images, where a term reads it.
          labels: train ids [B, H, W]; 255 is ignored.
          params: what the terms learn.
          state: what they carry.
          step: steps done.
          steps: of the run.
          key: what the terms' random numbers are drawn from.
        """
        parts = {"cross_entropy": self._cross_entropy(student["logits"], labels)}
        loss = self.cross_entropy * parts["cross_entropy"]
        if "aux_logits" in student and self.auxiliary:
            parts["auxiliary_cross_entropy"] = self._cross_entropy(student["aux_logits"], labels)
            loss += self.auxiliary * parts["auxiliary_cross_entropy"]
        if self.distiller:
            taught, (state, metrics) = self.distiller(
                params, state, student, teacher, labels, step=step, steps=steps, key=key
            )
            loss += taught
            parts |= metrics
        return loss, (state, {"loss": loss, **parts})

    def _cross_entropy(
        self, scores: Array | Classification, labels: Int[Array, "B H W"]
    ) -> Float[Array, ""]:
        """Cross-entropy at the labels' size, averaged."""
        values = losses.upsampled_cross_entropy(array_of(scores), labels, ignore_label=IGNORE_LABEL)
        if self.mean_over == "all":
            return jnp.mean(values)
        return losses.valid_mean(values, labels != IGNORE_LABEL)
