"""Whole-image evaluation: predictions at the labels' size, counted on the device."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, UInt8

from kdjax.evaluation.metrics import Scores, confusion_matrix
from kdjax.models.layers import resize
from kdjax.models.preprocessing import Preprocessing

MAX_COUNT = np.iinfo(np.int32).max


class Predictor:
    """A network as a compiled function from its weights and 8-bit images to class ids.

    Args:
      graphdef: the network's structure.
      preprocessing: how pixels become its input.
    """

    def __init__(self, graphdef: nnx.GraphDef, preprocessing: Preprocessing):
        def predict(state: Any, images: UInt8[Array, "B H W 3"]) -> Int[Array, "B H W"]:
            logits = nnx.merge(graphdef, state)(preprocessing(images)).logits
            logits = resize(logits.astype(jnp.float32), images.shape[1:3])
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        self._predict: Callable[..., Array] = jax.jit(predict)

    def __call__(
        self, state: Any, images: UInt8[Array, "B H W 3"] | np.ndarray
    ) -> Int[Array, "B H W"]:
        """Returns the class of every pixel, at the images' own size.

        Args:
          state: parameters and running statistics, as `nnx.state(net)` holds them.
          images: 8-bit RGB images of one size.
        """
        return self._predict(state, images)


def evaluate(
    predictor: Predictor,
    state: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    put: Callable[[dict[str, np.ndarray]], dict[str, Array]],
    *,
    reference: tuple[Predictor, Any] | None = None,
) -> Scores:
    """Scores a network on batches.

    Args:
      predictor: the network.
      state: its weights.
      batches: each `image` [B, H, W, 3] uint8 and `label` [B, H, W]; a blank filler image has the
        label 255 everywhere.
      num_classes: K.
      put: places a batch on the devices.
      reference: the teacher and its weights, for the agreement.
    """
    confusion, agreeing = np.zeros((num_classes, num_classes), np.int64), 0
    totals, counted = _zeros(num_classes), 0
    for batch in batches:
        # The device counts in 32 bits; the host takes over before they can overflow.
        if counted + batch["label"].size > MAX_COUNT:
            confusion += np.asarray(totals["confusion"], np.int64)
            agreeing += int(totals["agreeing"])
            totals, counted = _zeros(num_classes), 0
        counted += batch["label"].size
        arrays = put({key: batch[key] for key in ("image", "label")})
        predictions = predictor(state, arrays["image"])
        theirs = reference[0](reference[1], arrays["image"]) if reference else predictions
        totals = _count(totals, predictions, theirs, arrays["label"])
    confusion += np.asarray(totals["confusion"], np.int64)
    agreeing += int(totals["agreeing"])
    agreement = agreeing / max(int(confusion.sum()), 1) if reference else None
    return Scores(confusion, agreement)


def _zeros(num_classes: int) -> dict[str, Array]:
    return {
        "confusion": jnp.zeros((num_classes, num_classes), jnp.int32),
        "agreeing": jnp.zeros((), jnp.int32),
    }


@jax.jit
def _count(
    totals: dict[str, Array],
    predictions: Int[Array, "B H W"],
    theirs: Int[Array, "B H W"],
    labels: Int[Array, "B H W"],
) -> dict[str, Array]:
    num_classes = totals["confusion"].shape[0]
    agreeing = (predictions == theirs) & (labels < num_classes)
    return {
        "confusion": totals["confusion"] + confusion_matrix(predictions, labels, num_classes),
        "agreeing": totals["agreeing"] + jnp.sum(agreeing, dtype=jnp.int32),
    }
