"""Converts the original files of a data set to records.

All functions raise a `UserError` that names the file if something is wrong with it.
"""
