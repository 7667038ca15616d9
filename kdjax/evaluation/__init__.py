"""Metrics accumulated on the device, and the inference that they are measured on."""

from kdjax.evaluation.evaluator import Predictor, Scores, confusion_matrix, evaluate
from kdjax.evaluation.inference import Inference

__all__ = ["Inference", "Predictor", "Scores", "confusion_matrix", "evaluate"]
