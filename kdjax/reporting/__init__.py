"""Seeing a run: writers while it lasts, figures and one HTML report when it is over."""
