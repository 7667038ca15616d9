"""Metrics accumulated on the device, and the inference that they are measured on."""

from kdjax.evaluation.evaluator import Predictor, evaluate
from kdjax.evaluation.inference import Inference
from kdjax.evaluation.metrics import Scores, confusion_matrix

__all__ = ["Inference", "Predictor", "Scores", "confusion_matrix", "evaluate"]
