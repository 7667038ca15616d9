"""KL divergence of each pixel as terms: plain, gap-weighted, DKD, and WSLD."""

from kdjax import losses
from kdjax.distillation.loss import ScoreLoss, loss_class
from kdjax.distillation.terms import term


class PixelwiseKL(loss_class(losses.pixelwise_kl)):
    """Soft targets at every pixel: Hinton et al. 2015, with the weight of CIRKD."""


class GapWeightedKL(ScoreLoss, loss_class(losses.gap_weighted_kl, mean_over="labels")):
    """Soft targets where the teacher knows more: Shan 2019, our reading. A mean over labels."""

    adapter = "never"


class DKD(ScoreLoss, loss_class(losses.dkd, mean_over="labels")):
    """KL divergence in two parts: Zhao et al. 2022, as on ImageNet. A mean over labels."""

    adapter = "never"


class WSLD(ScoreLoss, loss_class(losses.wsld, mean_over="labels")):
    """Soft targets by the ratio of losses: Zhou et al. 2021. A mean over labels."""

    weight = 2.5
    adapter = "never"


METHODS = {name: {name: term(name)} for name in ("pixelwise_kl", "dkd", "wsld")}
