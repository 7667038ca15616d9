"""Networks that only predict: teachers and finished students."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdjax.errors import UserError
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
        cls, path: str, *, dtype: str = "float32", inference: Inference = WHOLE
    ) -> "TrainedNetwork":
        """Reads a network checkpoint, or the student of a finished run.

            network = kdjax.load("runs/first")
            labels = network.predict(images)

        Args:
          path: of the checkpoint, or the workdir of the run; or "package.module:attribute" of a
            network that brings its trained variables, or of a function that returns one.
          dtype: that the network computes in.
          inference: what it is shown of an image; whole images by default.

        Raises:
          UserError: when there is none, it is damaged, or its store does not answer.
        """
        network, variables, info = saved.load(path, dtype=dtype)
        return cls(info, network, variables, Predictor(network, info.preprocessing, inference))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the class of every pixel, int32 `[B, H, W]`, or `[H, W]` of a single image.

        Args:
          images: 8-bit RGB, `[B, H, W, 3]` or `[H, W, 3]`. Each size is compiled for once.

        Raises:
          UserError: for other shapes and types.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}; they must be RGB of 8 bits, "
                "uint8 [B, H, W, 3] or [H, W, 3]"
            )
        whole = images if images.ndim == 4 else images[None]
        labels = np.asarray(self.predictor(self.variables, whole))
        return labels if images.ndim == 4 else labels[0]


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
