"""DSD as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class DSDPairs(loss_class(losses.dsd_pairs)):
    """How attention changes between maps: Feng et al. 2021, as in CIRKD's code.

    CIRKD's weight is 1000 on a mean over 64 x 128 pixels, which is 0.12 on a sum.
    """

    student = teacher = ("aux_logits", "head", "logits")
    weight = 0.12
    adapter = "never"


# Networks without an auxiliary head have two of the three maps.
_PAIR = ("head", "logits")
METHODS = {"dsd": {"dsd_pairs": term("dsd_pairs", student=_PAIR, teacher=_PAIR)}}
