"""Whole runs: a config and its images in, a trained network, its scores and a report out."""
