"""Labels at the size of a feature map."""

import numpy as np
from jaxtyping import Array, Bool, Int

IGNORE_LABEL = 255


def nearest(labels: Int[Array, "B H W"], size: tuple[int, ...]) -> Int[Array, "B h w"]:
    """Takes the label under the centre of each cell of a map of `size`.

    The centres are those of bilinear resizing without aligned corners, so that a cell's label is
    the one that its logits are compared with once they are upsampled. (PyTorch's "nearest" takes
    the cell's upper left pixel instead.)
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows][:, :, columns]


def counts(labels: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Marks the pixels that have a label."""
    return labels != IGNORE_LABEL
