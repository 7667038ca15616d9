"""IFVD as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class IFVD(loss_class(losses.ifvd)):
    """Similarity to the center of the class: Wang et al. 2020, with CIRKD's weight.

    The mean includes pixels without a label, as in the authors' code.
    """

    student = teacher = "head"
    weight = 20.0
    adapter = "never"


METHODS = {
    # Without the adversarial term, which needs class scores of 64 x 64 or more.
    "pixelwise_kl_ifvd": {"pixelwise_kl": term("pixelwise_kl"), "ifvd": term("ifvd")},
    "ifvd": {
        "pixelwise_kl": term("pixelwise_kl"),
        "ifvd": term("ifvd"),
        "holistic": term("holistic"),
    },
}
BUILDS_ON = {"pixelwise_kl_ifvd": "pixelwise_kl", "ifvd": "pixelwise_kl_ifvd"}
