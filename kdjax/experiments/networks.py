"""Networks that only predict: teachers and finished students."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdjax.evaluation.evaluator import Predictor
from kdjax.evaluation.inference import WHOLE, Inference
from kdjax.models import Network, Variables, saved
from kdjax.models.saved import NetworkInfo


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with its variables and its compiled prediction."""

    info: NetworkInfo
    network: Network
    variables: Variables
    predictor: Predictor

    @classmethod
    def load(
        cls, source: str, *, dtype: str = "float32", inference: Inference = WHOLE
    ) -> "TrainedNetwork":
        """Loads a network.

        Args:
          source: as `saved.load` takes it.
          dtype: compute dtype.
          inference: what the network is shown of an image.
        """
        network, variables, info = saved.load(source, dtype=dtype)
        return cls(info, network, variables, Predictor(network, info.preprocessing, inference))


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
