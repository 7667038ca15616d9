"""What the renaming of other projects' weights has in common."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax.errors import UserError


def renamed(name: str, rules: Sequence[tuple[str, str]], project: str) -> str:
    """Renames by the first rule whose pattern the name begins with.

    Raises:
      UserError: where there is none, naming the weight and the project.
    """
    for pattern, replacement in rules:
        found, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return found
    raise UserError(f'the weights hold "{name}", which is no part of {project}')


def pooled_image_first(kernel: np.ndarray) -> np.ndarray:
    """Reorders the inputs of a pyramid's last kernel [O, 5C, h, w] that has the pooled image last.

    mmsegmentation's atrous pyramid begins with it.
    """
    return np.roll(kernel, kernel.shape[1] // 5, axis=1)


def reversed_stages(kernel: np.ndarray) -> np.ndarray:
    """Turns around the inputs of a kernel [O, 4C, h, w] that reads the last stage first."""
    return np.concatenate(np.array_split(kernel, 4, axis=1)[::-1], axis=1)


def without_bias(weights: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """Moves the bias of a convolution into the batch norm behind it.

    There a constant does nothing in training, and otherwise it only shifts the running mean.
    """
    weights = dict(weights)
    bias = weights.pop(f"{conv}.bias", None)
    if bias is not None and f"{norm}.running_mean" in weights:
        weights[f"{norm}.running_mean"] = weights[f"{norm}.running_mean"] - bias
    return weights
