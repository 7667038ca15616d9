"""Reports of training: writers during a run; tables, charts, and an HTML page after it."""

from kdjax.reporting.writers import Console, JsonLines, TensorBoard, Writer

__all__ = ["Console", "JsonLines", "TensorBoard", "Writer"]
