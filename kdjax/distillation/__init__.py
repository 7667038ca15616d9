"""Distillation for any training loop, on JAX alone: losses as terms, and their weighted sum."""

from kdjax.distillation.distiller import Distiller, make_loss, need_teacher, term
from kdjax.distillation.loss import Inputs, Loss
from kdjax.distillation.maps import Classification, Maps, Spec

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
