"""Seeing a run: writers while it lasts, figures and one HTML report when it is over."""

from kdjax.reporting.writers import Console, JsonLines, TensorBoard, Writer

__all__ = ["Console", "JsonLines", "TensorBoard", "Writer"]
