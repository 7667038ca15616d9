"""Attention transfer as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class AttentionTransfer(loss_class(losses.attention_transfer)):
    """Attention maps, which show where features are large: Zagoruyko and Komodakis 2017.

    CIRKD's weight is 10000 on a mean over 64 x 128 pixels, which is 1.2 on a sum.
    """

    student = teacher = "head"
    weight = 1.2
    adapter = "never"


# CIRKD's code runs it with pixelwise KL.
METHODS = {
    "attention_transfer": {
        "pixelwise_kl": term("pixelwise_kl"),
        "attention_transfer": term("attention_transfer"),
    }
}
BUILDS_ON = {"attention_transfer": "pixelwise_kl"}
