"""L2 as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class L2(loss_class(losses.l2)):
    """Squared distance of features: Romero et al. 2015, with the weight and adapter of CIRKD."""

    student = teacher = "head"
    weight = 10.0
    adapter = "always"


METHODS = {
    "l2": {"l2": term("l2")},
    "pixelwise_kl_l2": {"pixelwise_kl": term("pixelwise_kl"), "l2": term("l2")},
}
BUILDS_ON = {"pixelwise_kl_l2": "pixelwise_kl"}
