"""Networks that only predict: teachers and finished students."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from kdjax.evaluation.evaluator import Predictor
from kdjax.evaluation.inference import WHOLE, Inference
from kdjax.models import saved
from kdjax.models.saved import NetworkInfo


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its weights and its compiled prediction."""

    info: NetworkInfo
    graphdef: nnx.GraphDef
    state: nnx.State
    predictor: Predictor

    @classmethod
    def load(cls, path: str, *, dtype: str = "float32", inference: Inference = WHOLE) -> "Network":
        """Reads a network checkpoint, or the student of a finished workdir."""
        net, info = saved.load(path, dtype=dtype)
        graphdef, state = nnx.split(net)
        return cls(info, graphdef, state, Predictor(graphdef, info.preprocessing, inference))

    def module(self) -> nnx.Module:
        """The network itself."""
        return nnx.merge(self.graphdef, self.state)


def predict_examples(
    predict: Callable[[np.ndarray], Any], examples: Sequence[dict[str, Any]], batch_size: int
) -> list[np.ndarray]:
    """Returns the predicted label map [H, W] uint8 of every example.

    They travel in batches of the size that evaluation uses, so that nothing is compiled twice.

    Args:
      predict: class ids [B, H, W] of images [B, H, W, 3].
      examples: each with `image` and `label`.
      batch_size: B.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_size.setdefault(example["label"].shape, []).append(index)
    predictions: dict[int, np.ndarray] = {}
    for size, indices in by_size.items():
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            batch = np.zeros((batch_size, *size, 3), np.uint8)
            batch[: len(chunk)] = [examples[index]["image"] for index in chunk]
            found = np.asarray(predict(batch), np.uint8)
            predictions |= dict(zip(chunk, found[: len(chunk)], strict=True))
    return [predictions[index] for index in range(len(examples))]
