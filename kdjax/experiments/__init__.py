"""Whole experiments: one run from its config to its report, and the comparison of several."""
