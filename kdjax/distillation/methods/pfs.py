"""PFS as a term."""

from kdjax import losses
from kdjax.distillation.loss import loss_class
from kdjax.distillation.terms import term


class PFS(loss_class(losses.pfs)):
    """Pixel-wise feature similarities: Shan 2019, our reading.

    The authors' weight is unknown. CIRKD's code gives SKD's table a weight of 10.
    """

    student = teacher = "head"
    weight = 10.0
    adapter = "never"


METHODS = {
    "pfs": {"similarities": term("pfs"), "predictions": term("gap_weighted_kl")},
    "pfs_similarities": {"similarities": term("pfs")},
    "pfs_predictions": {"predictions": term("gap_weighted_kl")},
}
BUILDS_ON = {"pfs_predictions": "pixelwise_kl"}
