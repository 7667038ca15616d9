"""Metrics accumulated on the device, and the inference that they are measured on."""
