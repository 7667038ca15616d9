"""From examples on disk or in memory to batches of the same numbers on every machine."""
