"""PKD as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class PKD(loss_class(losses.pkd)):
    """Correlation of features over the batch: Cao et al. 2022, the weight of their detectors."""

    student = teacher = "head"
    weight = 6.0


METHODS = {"pkd": {"pkd": term("pkd")}}
