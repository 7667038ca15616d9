"""What a step minimises: cross-entropy, auxiliary cross-entropy and the distillation terms."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax import losses
from kdjax.distillation import terms as distillation_terms
from kdjax.models import SegmentationOutput
from kdjax.models.layers import resize


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum that trains a student.

    Attributes:
      cross_entropy: weight of the cross-entropy with the labels.
      auxiliary: weight of the auxiliary head's cross-entropy.
      terms: the distillation terms; none for a plain student.
    """

    cross_entropy: float
    auxiliary: float
    terms: tuple[distillation_terms.Term, ...] = ()

    def __call__(
        self,
        student: SegmentationOutput,
        teacher: SegmentationOutput | None,
        labels: Int[Array, "B H W"],
        adapters: distillation_terms.Adapters,
        progress: Float[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss, and every part of it, unweighted, by name.

        Args:
          student: the student's output on the batch.
          teacher: the teacher's output on the same images, where there are terms.
          labels: train ids [B, H, W]; 255 is ignored.
          adapters: the terms' adapters by name.
          progress: share of the run that is done, 0 to 1.
        """
        parts = {"cross_entropy": _cross_entropy(student.logits, labels)}
        loss = self.cross_entropy * parts["cross_entropy"]
        if student.aux_logits is not None and self.auxiliary:
            parts["auxiliary_cross_entropy"] = _cross_entropy(student.aux_logits, labels)
            loss += self.auxiliary * parts["auxiliary_cross_entropy"]
        if self.terms:
            assert teacher is not None
            values = distillation_terms.values(self.terms, adapters, student, teacher)
            for term in self.terms:
                loss += term.weight(progress) * values[term.name]
            parts |= values
        return loss, {"loss": loss, **parts}


def _cross_entropy(
    logits: Float[Array, "B h w K"], labels: Int[Array, "B H W"]
) -> Float[Array, ""]:
    """Cross-entropy at the labels' size, averaged over the pixels that have a label."""
    logits = resize(logits.astype(jnp.float32), labels.shape[1:3])
    return losses.valid_mean(losses.cross_entropy(logits, labels), labels != 255)
