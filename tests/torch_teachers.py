"""PyTorch networks as teachers, which tests name in configs."""

import functools

import torch

from kdjax.interop import TorchTeacher

NAMES = ("class_0", "class_1", "class_2")


def network(seed=0, classes=3):
    """A network of stride 4 with batch norm, and dropout that only training draws."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Conv2d(8, classes, 3, 2, 1),
        )


@functools.cache
def teacher():
    return TorchTeacher(network())


def with_features(module, images):
    head = module[:-1](images)
    return {"logits": module[-1](head), "head": head}


def three_names():
    return TorchTeacher(network(classes=4), class_names=NAMES)


def on_gpu():
    return TorchTeacher(network(), device="cuda:1")
