"""Scores of segmentation networks, and prediction on whole images or sliding windows."""

from kdjax.evaluation.evaluator import Predictor, Scores, confusion_matrix, evaluate
from kdjax.evaluation.inference import Inference

__all__ = ["Inference", "Predictor", "Scores", "confusion_matrix", "evaluate"]
