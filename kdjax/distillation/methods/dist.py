"""DIST as two terms."""

from kdjax import losses
from kdjax.distillation.loss import ScoreLoss, loss_class
from kdjax.distillation.terms import term


class DISTInter(ScoreLoss, loss_class(losses.dist_inter)):
    """Correlation of the classes of a pixel: Huang et al. 2022."""


class DISTIntra(ScoreLoss, loss_class(losses.dist_intra)):
    """Correlation of the pixels of a class: Huang et al. 2022."""


METHODS = {"dist": {"inter": term("dist_inter"), "intra": term("dist_intra")}}
