"""Distillation for any training loop, on JAX alone: losses as terms, and their weighted sum."""

from kdjax.distillation.distiller import Distiller
from kdjax.distillation.feature_maps import Classification, Maps, Spec
from kdjax.distillation.loss import Inputs, Loss
from kdjax.distillation.terms import make_loss, need_teacher, term

__all__ = [
    "Classification",
    "Distiller",
    "Inputs",
    "Loss",
    "Maps",
    "Spec",
    "make_loss",
    "need_teacher",
    "term",
]
