"""JML as a term."""

from kdjax import losses
from kdjax.distillation.loss import ScoreLoss, loss_class
from kdjax.distillation.terms import term


class JML(ScoreLoss, loss_class(losses.jml)):
    """Overlap of soft masks: Wang et al. 2023. The weight is relative to cross-entropy."""

    weight = 6.0
    adapter = "never"


METHODS = {
    "jml": {
        "pixelwise_kl": term("pixelwise_kl"),
        "jml": term("jml"),
        "jml_labels": term("jml", target="labels"),
    }
}
BUILDS_ON = {"jml": "pixelwise_kl"}
