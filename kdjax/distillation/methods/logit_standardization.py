"""Logit standardization as a term."""

from typing import Any

from kdjax import losses
from kdjax.distillation.loss import ScoreLoss, loss_class
from kdjax.distillation.terms import term


class StandardizedKL(ScoreLoss, loss_class(losses.standardized_kl)):
    """Soft targets without the scale of the scores: Sun et al. 2024, as on ImageNet."""

    weight = 9.0
    adapter = "never"

    def check(self, student: Any, teacher: Any) -> None:
        super().check(student, teacher)
        if student.channels < 3:
            raise ValueError(
                f"needs three classes, got {student.channels}: two scores are the same after "
                "standardization, up to their order; use pixelwise_kl"
            )


METHODS = {"standardized_kl": {"standardized_kl": term("standardized_kl")}}
