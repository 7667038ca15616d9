"""CWD as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class CWD(loss_class(losses.cwd)):
    """Channel-wise distillation: Shu et al. 2021.

    The authors' main run has weight 3 and temperature 4 on the class scores. Their weight is 50 on
    the features after the pyramid.
    """

    weight = 3.0


METHODS = {
    "cwd": {"cwd": term("cwd")},
    "cwd_features": {"cwd": term("cwd", student="head", teacher="head", weight=50.0)},
}
