"""Logit standardization as a term."""

from kdjax import losses
from kdjax.distillation.loss import ScoreLoss, loss_class
from kdjax.distillation.terms import term


class StandardizedKL(ScoreLoss, loss_class(losses.standardized_kl)):
    """Soft targets without the scale of the scores: Sun et al. 2024, as on ImageNet."""

    weight = 9.0
    adapter = "never"


METHODS = {"standardized_kl": {"standardized_kl": term("standardized_kl")}}
