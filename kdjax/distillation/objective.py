"""What a step minimises: cross-entropy, auxiliary cross-entropy and the distillation terms."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax import losses
from kdjax.distillation import labels as label_maps
from kdjax.distillation import terms as distillation_terms
from kdjax.models import SegmentationOutput


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum that trains a student.

    Attributes:
      cross_entropy: weight of the cross-entropy with the labels.
      auxiliary: weight of the auxiliary head's cross-entropy.
      terms: the distillation terms; none for a plain student.
      mean_over: the pixels over which both cross-entropies are averaged: those that have a label,
        or all, where ignored ones count as 0, as in mmsegmentation.
    """

    cross_entropy: float
    auxiliary: float
    terms: tuple[distillation_terms.Term, ...] = ()
    mean_over: Literal["labelled", "all"] = "labelled"

    def __call__(
        self,
        student: SegmentationOutput,
        teacher: SegmentationOutput | None,
        labels: Int[Array, "B H W"],
        adapters: distillation_terms.Adapters,
        statistics: distillation_terms.Statistics,
        progress: Float[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], distillation_terms.Statistics]:
        """Returns the loss; its parts, unweighted, and diagnostics by name; the class statistics.

        Args:
          student: the student's output on the batch.
          teacher: the teacher's output on the same images, where a term reads it.
          labels: train ids [B, H, W]; 255 is ignored.
          adapters: the terms' adapters by name.
          statistics: the terms' class statistics; those that are returned have this batch in them.
          progress: share of the run that is done, 0 to 1.
        """
        parts = {"cross_entropy": self._cross_entropy(student.logits, labels)}
        loss = self.cross_entropy * parts["cross_entropy"]
        if student.aux_logits is not None and self.auxiliary:
            parts["auxiliary_cross_entropy"] = self._cross_entropy(student.aux_logits, labels)
            loss += self.auxiliary * parts["auxiliary_cross_entropy"]
        if self.terms:
            statistics = distillation_terms.update_statistics(
                self.terms, statistics, student, labels
            )
            values = distillation_terms.values(
                self.terms, adapters, statistics, student, teacher, labels, progress
            )
            for term in self.terms:
                loss += term.weight(progress) * values[term.name]
            parts |= values
        return loss, {"loss": loss, **parts}, statistics

    def _cross_entropy(
        self, logits: Float[Array, "B h w K"], labels: Int[Array, "B H W"]
    ) -> Float[Array, ""]:
        """Cross-entropy at the labels' size, averaged."""
        values = losses.upsampled_cross_entropy(
            logits, labels, ignore_label=label_maps.IGNORE_LABEL
        )
        if self.mean_over == "all":
            return jnp.mean(values)
        return losses.valid_mean(values, label_maps.counts(labels))
