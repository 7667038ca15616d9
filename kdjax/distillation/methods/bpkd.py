"""BPKD as a term."""

import dataclasses
from typing import Any

from jaxtyping import PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, ScoreLoss, loss_class
from kdjax.distillation.terms import term


class BPKD(ScoreLoss, loss_class(losses.bpkd)):
    """Edges and bodies of classes: Liu et al. 2024, our reading, with the weight of the bodies.

    The weight for `part="edge"` is 100.
    """

    weight = 20.0
    adapter = "never"

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Any:
        # Edges are found at the size of the images.
        inputs = dataclasses.replace(inputs, labels=inputs.full_labels)
        return super().__call__(inputs, params, state)


METHODS = {"bpkd": {"body": term("bpkd"), "edge": term("bpkd", part="edge", weight=100.0)}}
