"""Networks that predict at the images' size, and their scores, counted on the device."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, UInt8

from kdjax.evaluation.inference import WHOLE, Inference, class_scores
from kdjax.models import Network, Preprocessing, Variables, serialization
from kdjax.models.folding import FrozenNetwork, can_freeze
from kdjax.models.layers import resize
from kdjax.models.network import ReorderedClasses, scores_of
from kdjax.models.serialization import NetworkInfo
from kdjax.utils.classes import IGNORE_LABEL, class_order
from kdjax.utils.environment import compiler_options
from kdjax.utils.errors import UserError


def confusion_matrix(
    predictions: Int[Array, "..."], labels: Int[Array, "..."], num_classes: int
) -> Int[Array, "K K"]:
    """Counts pixels by (label, prediction), in integers.

    Args:
      predictions: class ids in 0..K-1, of any shape.
      labels: train ids of the same shape; those outside 0..K-1 (255 is the ignore label) are left
        out.
      num_classes: K.
    """
    labels = labels.astype(jnp.int32).ravel()
    valid = (labels >= 0) & (labels < num_classes)
    # The cells past the end collect what is left out.
    cells = jnp.where(valid, labels * num_classes + predictions.ravel(), num_classes**2)
    counts = jnp.bincount(cells, length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a network scored on a split.

    Attributes:
      confusion: pixels by (label, prediction), int64 [K, K].
      agreement: share of the labelled pixels where student and teacher predict the same class, or
        None where there is no teacher.
      groups: scores of some of the images alone, by the group's name.
    """

    confusion: np.ndarray
    agreement: float | None = None
    groups: Mapping[str, "Scores"] = dataclasses.field(default_factory=dict)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union [K]; nan for a class that neither label nor prediction has."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)

    @property
    def miou(self) -> float:
        """Mean of the IoU over the classes that occur; nan where no pixel has a label."""
        iou = self.iou
        return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right; nan where no pixel has a label."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """The scores as JSON holds them; None stands for nan."""

        def known(value: float | None) -> float | None:
            return None if value is None or np.isnan(value) else float(value)

        return {
            "miou": known(self.miou),
            "pixel_accuracy": known(self.pixel_accuracy),
            "agreement": known(self.agreement),
            "iou": [known(value) for value in self.iou],
        }


MAX_COUNT = np.iinfo(np.int32).max


class Predictor:
    """A network as a compiled function from its weights and 8-bit images to class ids.

    Args:
      network: the network.
      preprocessing: how pixels become its input.
      inference: what it is shown of an image; whole images by default.

    Attributes:
      inference: as given.
      shapes: what the network was compiled for, in order; with sliding windows mostly one.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        inference: Inference = WHOLE,
    ):
        self.inference = inference
        self.shapes: list[tuple[int, ...]] = []
        shapes = self.shapes

        def look(variables: Variables, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W K"]:
            shapes.append(pixels.shape)  # tracing comes here once for each shape
            output, _ = network.apply(variables, preprocessing(pixels), train=False, key=None)
            return resize(scores_of(output).astype(jnp.float32), pixels.shape[1:3])

        def best(scores: Float[Array, "B H W K"]) -> Int[Array, "B H W"]:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32)

        self._look: Callable[..., Array] = _compiled(look)
        self._best: Callable[..., Array] = jax.jit(best)
        self._whole: Callable[..., Array] = _compiled(lambda *given: best(look(*given)))

    def __call__(
        self,
        variables: Variables,
        images: UInt8[Array, "B H W 3"] | np.ndarray,
        sizes: Int[Array, "B 2"] | np.ndarray | None = None,
    ) -> Int[Array, "B H W"]:
        """Returns the class of every pixel, at the images' own size.

        Args:
          variables: of the network.
          images: 8-bit RGB images of one size, or padded to one below and on the right.
          sizes: height and width of each without its padding, which sliding windows then avoid.
        """
        if self.inference == WHOLE:
            return self._whole(variables, images)
        look = functools.partial(self._look, variables)
        return self._best(class_scores(look, jnp.asarray(images), sizes, self.inference))


def _compiled(function: Callable[[Variables, Any], Array]) -> Callable[[Variables, Any], Array]:
    """The function as a program; as it is where it becomes part of another one, as of an export."""
    program = jax.jit(function, compiler_options=compiler_options(jax.default_backend()))

    def call(variables: Variables, images: Any) -> Array:
        return (function if isinstance(images, Tracer) else program)(variables, images)

    return call


# As `Predictor` is called.
Predict = Callable[[Variables, Array, Array], Int[Array, "B H W"]]


def evaluate(
    predictor: Predict,
    variables: Variables,
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    put: Callable[[dict[str, np.ndarray]], dict[str, Array]],
    *,
    reference: tuple[Predict, Variables] | None = None,
    groups: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> Scores:
    """Scores a network on batches, and on groups of their images in the same pass.

    Args:
      predictor: the network, or anything else that is called so.
      variables: its arrays.
      batches: each `image` [B, H, W, 3] uint8, `label` [B, H, W] and `size` [B, 2], the image's
        own height and width; a blank filler image has the label 255 everywhere. Where there are
        groups, also the images' `index` [B].
      num_classes: K.
      put: places a batch on the devices.
      reference: the teacher and its variables, for the agreement.
      groups: by name, the indices of their images.

    Raises:
      UserError: when a batch has more pixels than the device can count.
    """
    # The label maps that are counted: those of all images, then those of each group alone.
    keys = {name: f"label/{name}" for name in groups}
    counted = ("label", *keys.values())
    confusion = {key: np.zeros((num_classes, num_classes), np.int64) for key in counted}
    agreeing = dict.fromkeys(counted, 0)
    totals, pixels_counted = {key: _zeros(num_classes) for key in counted}, 0

    def take_over() -> None:
        for key, total in totals.items():
            confusion[key] += np.asarray(total["confusion"], np.int64)
            agreeing[key] += int(total["agreeing"])

    for batch in batches:
        given = {key: batch[key] for key in ("image", "label", "size")}
        for name, members in groups.items():
            inside = np.isin(batch["index"], list(members))[:, None, None]
            given[keys[name]] = np.where(inside, batch["label"], np.uint8(IGNORE_LABEL))
        arrays = put(given)
        # Those of all processes: each has counts of the whole batch.
        pixels = arrays["label"].size
        if pixels > MAX_COUNT:
            raise UserError(
                f"a batch of {pixels} pixels is evaluated at once, of {MAX_COUNT} at most; lower "
                "config.data.eval_batch_size"
            )
        # The device counts in 32 bits; the host takes over before they can overflow.
        if pixels_counted + pixels > MAX_COUNT:
            take_over()
            totals, pixels_counted = {key: _zeros(num_classes) for key in counted}, 0
        pixels_counted += pixels
        predictions = predictor(variables, arrays["image"], arrays["size"])
        references = predictions
        if reference:
            references = reference[0](reference[1], arrays["image"], arrays["size"])
        for key in counted:
            totals[key] = _count(totals[key], predictions, references, arrays[key])
    take_over()

    def scores(key: str) -> Scores:
        pixels = max(int(confusion[key].sum()), 1)
        return Scores(confusion[key], agreeing[key] / pixels if reference else None)

    return dataclasses.replace(
        scores("label"), groups={name: scores(key) for name, key in keys.items()}
    )


def _zeros(num_classes: int) -> dict[str, Array]:
    return {
        "confusion": jnp.zeros((num_classes, num_classes), jnp.int32),
        "agreeing": jnp.zeros((), jnp.int32),
    }


@jax.jit
def _count(
    totals: dict[str, Array],
    predictions: Int[Array, "B H W"],
    references: Int[Array, "B H W"],
    labels: Int[Array, "B H W"],
) -> dict[str, Array]:
    num_classes = totals["confusion"].shape[0]
    agreeing = (predictions == references) & (labels < num_classes)
    return {
        "confusion": totals["confusion"] + confusion_matrix(predictions, labels, num_classes),
        "agreeing": totals["agreeing"] + jnp.sum(agreeing, dtype=jnp.int32),
    }


def order_by_name(
    names: Sequence[str],
    class_names: Sequence[str],
    *,
    where: str,
    accept: str,
    log: Callable[[str], None] | None,
) -> tuple[int, ...] | None:
    """Returns what `kdjax.utils.classes.class_order` does for a network and a data set.

    Args:
      names: of the network's classes.
      class_names: of the data set's classes.
      where: what messages call the network.
      accept: the setting that takes classes by number, for messages.
      log: takes a line if the order differs.

    Raises:
      UserError: if the names are not those of the data set, in any order.
    """
    try:
        order = class_order(names, class_names)
    except ValueError as error:
        raise UserError(
            f"{where} scores other classes than the data ({error}); set {accept} to True to take "
            "its classes by their numbers, whatever their names"
        ) from error
    if order and log:
        log(f"{where} has the classes of the data in another order; its scores are reordered")
    return order


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
        network, variables, info = serialization.load(path, dtype=dtype)
        return cls(info, network, variables, Predictor(network, info.preprocessing, inference))

    def running(
        self, network: Network, variables: Variables, info: NetworkInfo | None = None
    ) -> "TrainedNetwork":
        """Returns another network with the same description and inference, or with `info`."""
        info = info or self.info
        predictor = Predictor(network, info.preprocessing, self.predictor.inference)
        return TrainedNetwork(info, network, variables, predictor)

    def frozen(self, dtype: str) -> "TrainedNetwork":
        """Returns the network as a training step runs its teacher.

        Args:
          dtype: that the network computes in.
        """
        if not can_freeze(self.network, dtype):
            return self
        network = FrozenNetwork(self.network)
        return self.running(network, network.freeze(self.variables))

    def in_order_of(
        self,
        class_names: Sequence[str],
        *,
        where: str,
        accept: str,
        any_names: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> "TrainedNetwork":
        """Returns the network with its class scores in the order of a data set's classes.

        A network of another number of classes stays as it is.

        Args:
          class_names: of the data set.
          where: as `order_by_name` takes it.
          accept: the same.
          any_names: True to take the classes by number, whatever their names.
          log: as `order_by_name` takes it.

        Raises:
          UserError: if the names are not those of the data set, in any order.
        """
        if any_names or self.info.num_classes != len(class_names):
            return self
        order = order_by_name(
            self.info.class_names, class_names, where=where, accept=accept, log=log
        )
        if order is None:
            return self
        info = dataclasses.replace(
            self.info,
            class_names=tuple(class_names),
            palette=tuple(self.info.palette[index] for index in order),
        )
        return self.running(ReorderedClasses(self.network, order), self.variables, info)

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
