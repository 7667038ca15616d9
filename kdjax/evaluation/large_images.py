"""Labels of images that are too large for their class scores to be in memory.

The sums of `kdjax.evaluation.inference` over sliding windows, but only for the rows that later
windows still reach. The labels are the same, except where rounding decides between two classes.
"""

from collections.abc import Callable, Iterator

import numpy as np

from kdjax.evaluation.inference import Inference

# Images of more pixels are labeled in strips.
LARGE = 4096**2

# Returns the class scores [B, h, w, K] of windows [B, h, w, C], for a fixed B.
LookAt = Callable[[np.ndarray], np.ndarray]


def in_strips(size: tuple[int, int], inference: Inference) -> bool:
    """Returns True if images of this size are labeled in strips: by windows, in one view."""
    return (
        size[0] * size[1] > LARGE
        and inference.window is not None
        and inference.is_one_view
        and inference.scales == (1.0,)
    )


def label_strips(
    look: LookAt, image: np.ndarray, inference: Inference, *, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields the class ids of an image, uint8 `[n, W]`, from its first rows to its last.

    Args:
      look: the network.
      image: `[H, W, C]`.
      inference: sliding windows.
      batch_size: the number of windows that `look` takes.
    """
    assert inference.window is not None
    assert inference.stride is not None
    height, width = image.shape[:2]
    shape = min(inference.window[0], height), min(inference.window[1], width)
    rows = _starts(height, shape[0], inference.stride[0])
    columns = _starts(width, shape[1], inference.stride[1])
    sums: np.ndarray | None = None
    counts = np.zeros((shape[0], width, 1), np.float32)
    for top, following in zip(rows, [*rows[1:], height], strict=True):
        for first in range(0, len(columns), batch_size):
            chunk = columns[first : first + batch_size]
            # The last batch is filled up with its last window, so that one program is compiled.
            lefts = [*chunk, *[chunk[-1]] * (batch_size - len(chunk))]
            windows = [image[top : top + shape[0], left : left + shape[1]] for left in lefts]
            scores = look(np.stack(windows))
            if sums is None:
                sums = np.zeros((shape[0], width, scores.shape[-1]), np.float32)
            for left, found in zip(chunk, scores, strict=False):
                sums[:, left : left + shape[1]] += found
                counts[:, left : left + shape[1]] += 1
        assert sums is not None
        done = following - top
        yield np.argmax(sums[:done] / counts[:done], -1).astype(np.uint8)
        for array in (sums, counts):
            # Rows that the next windows reach move up.
            array[: shape[0] - done] = array[done : shape[0]]
            array[max(shape[0] - done, 0) :] = 0


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Returns the starts of windows; the last one is moved to the border."""
    last = length - window
    return [*range(0, last, stride), last]
