"""Weights from and to PyTorch projects, as NumPy arrays."""
