"""Turns examples on disk or in memory into batches, the same on every machine."""
