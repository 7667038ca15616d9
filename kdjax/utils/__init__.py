"""Helpers that every package may use: errors, files, logging, processes, names, and classes."""
