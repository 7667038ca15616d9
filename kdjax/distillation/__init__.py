"""Distillation terms: which loss, on which features, with what weight; adapters and schedules."""
