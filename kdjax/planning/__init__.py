"""Compiles training steps for devices that are not present: memory, work, and a time bound."""
