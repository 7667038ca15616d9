"""Compiled prediction at the size of the images, and scores on labeled images."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Shaped

from kdjax.evaluation.boundaries import BoundaryScores, ratio
from kdjax.evaluation.image_scores import ImageScores
from kdjax.evaluation.inference import WHOLE, Inference, class_scores
from kdjax.models import Network, Preprocessing, Variables, serialization
from kdjax.models.folding import FrozenNetwork, can_freeze
from kdjax.models.layers import resize
from kdjax.models.network import ReorderedClasses, scores_of
from kdjax.models.serialization import NetworkInfo
from kdjax.utils.bands import RGB
from kdjax.utils.classes import IGNORE_LABEL, class_order
from kdjax.utils.environment import compiler_options
from kdjax.utils.errors import UserError

SMALLEST = 1e-30  # a probability whose logarithm is finite


def confusion_matrix(
    predictions: Int[Array, "..."], labels: Int[Array, "..."], num_classes: int
) -> Int[Array, "K K"]:
    """Counts pixels by (label, prediction), in integers.

    Args:
      predictions: class ids in 0..K-1, of any shape.
      labels: train ids of the same shape. Ids outside 0..K-1, such as the ignore label 255, are not
        counted.
      num_classes: K.
    """
    labels = labels.astype(jnp.int32).ravel()
    valid = (labels >= 0) & (labels < num_classes)
    # One more cell collects the ignored pixels.
    cells = jnp.where(valid, labels * num_classes + predictions.ravel(), num_classes**2)
    counts = jnp.bincount(cells, length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a network on a split.

    Attributes:
      confusion: pixels by (label, prediction), int64 [K, K].
      agreement: share of the labeled pixels where student and teacher predict the same class, or
        None without a teacher.
      groups: scores of some of the images alone, by the group's name.
      boundaries: Boundary IoU and boundary F1, if they were measured.
      images: the images to look at, if they were collected.
    """

    confusion: np.ndarray
    agreement: float | None = None
    groups: Mapping[str, "Scores"] = dataclasses.field(default_factory=dict)
    boundaries: BoundaryScores | None = None
    images: ImageScores | None = None

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union [K]; NaN for a class that neither label nor prediction has."""
        hits = np.diag(self.confusion)
        return ratio(hits, self.confusion.sum(0) + self.confusion.sum(1) - hits)

    @property
    def miou(self) -> float:
        """Mean of the IoU over the classes that occur; NaN if no pixel has a label."""
        iou = self.iou
        return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")

    @property
    def precision(self) -> np.ndarray:
        """Share of the pixels predicted as a class that have its label [K]; NaN without any."""
        return ratio(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def recall(self) -> np.ndarray:
        """Share of the pixels labeled as a class that are predicted as it [K]; NaN without any."""
        return ratio(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labeled pixels that are right; NaN if no pixel has a label."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Returns the scores for JSON, with None in place of NaN.

        Precision and recall are included for two classes, a background and an object.
        """

        def known(value: float | None) -> float | None:
            return None if value is None or np.isnan(value) else float(value)

        by_class = {"iou": self.iou}
        if len(self.confusion) == 2:
            by_class |= {"precision": self.precision, "recall": self.recall}
        if self.boundaries:
            by_class |= {"boundary_iou": self.boundaries.iou, "boundary_f1": self.boundaries.f1}
        return {
            "miou": known(self.miou),
            "pixel_accuracy": known(self.pixel_accuracy),
            "agreement": known(self.agreement),
            **{name: [known(value) for value in values] for name, values in by_class.items()},
        }


class Predictor:
    """A network as a compiled function from its weights and 8-bit images to class ids.

    Args:
      network: the network.
      preprocessing: turns pixels into the network's input.
      inference: the views of an image; whole images by default.

    Attributes:
      inference: as given.
      shapes: the input shapes that the network was compiled for, in order.
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

        def look(variables: Variables, pixels: Float[Array, "B H W C"]) -> Float[Array, "B H W K"]:
            shapes.append(pixels.shape)  # runs once per shape, when JAX traces the function
            output, _ = network.apply(variables, preprocessing(pixels), train=False, key=None)
            return resize(scores_of(output).astype(jnp.float32), pixels.shape[1:3])

        def log(probabilities: Float[Array, "B H W K"]) -> Float[Array, "B H W K"]:
            return jnp.log(jnp.maximum(probabilities, SMALLEST))

        def best(scores: Float[Array, "B H W K"]) -> Int[Array, "B H W"]:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32)

        self._look: Callable[..., Array] = _compiled(look)
        self._best: Callable[..., Array] = jax.jit(best)
        self._log: Callable[..., Array] = jax.jit(log)
        self._whole: Callable[..., Array] = _compiled(lambda *given: best(look(*given)))

    def __call__(
        self,
        variables: Variables,
        images: Shaped[Array, "B H W C"] | np.ndarray,
        sizes: Int[Array, "B 2"] | np.ndarray | None = None,
    ) -> Int[Array, "B H W"]:
        """Returns the class of every pixel, at the images' own size.

        Args:
          variables: the variables of the network.
          images: 8-bit RGB images, or images of the network's bands, of one size, or padded to one
            size below and on the right.
          sizes: height and width of each image without padding. Sliding windows avoid the padding.
        """
        if self.inference == WHOLE:
            return self._whole(variables, images)
        look = functools.partial(self._look, variables)
        return self._best(class_scores(look, jnp.asarray(images), sizes, self.inference))

    def look(
        self, variables: Variables, images: Shaped[Array, "B H W C"] | np.ndarray
    ) -> Float[Array, "B H W K"]:
        """Returns the class scores of whole images, such as windows that the caller cut out."""
        return self._look(variables, images)

    def scores(
        self,
        variables: Variables,
        images: Shaped[Array, "B H W C"] | np.ndarray,
        sizes: Int[Array, "B 2"] | np.ndarray | None = None,
    ) -> Float[Array, "B H W K"]:
        """Returns the class scores of every pixel, whose softmax are the probabilities.

        For several views, they are the logarithm of the mean probabilities.

        Args:
          variables: see `__call__`.
          images: see `__call__`.
          sizes: see `__call__`.
        """
        if self.inference == WHOLE:
            return self._look(variables, images)
        look = functools.partial(self._look, variables)
        scores = class_scores(look, jnp.asarray(images), sizes, self.inference)
        return scores if self.inference.is_one_view else self._log(scores)


def _compiled(function: Callable[[Variables, Any], Array]) -> Callable[[Variables, Any], Array]:
    """Compiles a function, which stays uncompiled while traced, so that an export can inline it."""
    program = jax.jit(function, compiler_options=compiler_options(jax.default_backend()))

    def call(variables: Variables, images: Any) -> Array:
        return (function if isinstance(images, Tracer) else program)(variables, images)

    return call


# The signature of a `Predictor`.
Predict = Callable[[Variables, Array, Array], Int[Array, "B H W"]]


def evaluate(  # noqa: PLR0913
    predictor: Predict,
    variables: Variables,
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    put: Callable[[dict[str, np.ndarray]], dict[str, Array]],
    *,
    reference: tuple[Predict, Variables] | None = None,
    labels_of_reference: bool = False,
    groups: Mapping[str, Collection[int]] = MappingProxyType({}),
    observe: Callable[[dict[str, Array]], None] | None = None,
) -> Scores:
    """Scores a network on batches, and on groups of their images in the same pass.

    Args:
      predictor: the network, or any function with the same signature.
      variables: the variables of the network.
      batches: each has `image` [B, H, W, C], `label` [B, H, W], and `size` [B, 2], the
        height and width of each image. The blank images that fill the last batch have the label 255
        everywhere. Groups also need the `index` [B] of each image.
      num_classes: K.
      put: places a batch on the devices.
      reference: the teacher and its variables, for the agreement.
      labels_of_reference: True to score against the predictions of the reference, for images
        without labels.
      groups: the indices of the images of each group, by name.
      observe: called with the maps of each batch: `prediction`, `label`, and with a reference
        `reference`, [B, H, W]; `size` [B, 2]; and `index` [B], -1 for blank images.
    """
    confusion = np.zeros((1 + len(groups), num_classes, num_classes), np.int64)
    agreeing = np.zeros(1 + len(groups), np.int64)
    unread: tuple[Array, Array] | None = None

    def add(counts: tuple[Array, Array]) -> None:
        for total, count in zip((confusion, agreeing), jax.device_get(counts), strict=True):
            total += count

    for batch in batches:
        given = {key: batch[key] for key in ("image", "label", "size")}
        members = [np.isin(batch["index"], list(group)) for group in groups.values()]
        given["groups"] = np.stack([np.ones(len(given["label"]), bool), *members], axis=1)
        if observe:
            given["index"] = batch["index"]
        arrays = put(given)
        predictions = predictor(variables, arrays["image"], arrays["size"])
        references = predictions
        if reference:
            references = reference[0](reference[1], arrays["image"], arrays["size"])
        if labels_of_reference:
            arrays["label"] = _inside(references, arrays["size"])
        if observe:
            maps = {key: arrays[key] for key in ("label", "size", "index")}
            maps |= {"reference": references} if reference else {}
            observe({"prediction": predictions, **maps})
        counts = _count(predictions, references, arrays["label"], arrays["groups"], num_classes)
        # Reading the counts one batch later keeps the devices busy.
        if unread:
            add(unread)
        unread = counts
    if unread:
        add(unread)
    shares = agreeing / np.maximum(confusion.sum((1, 2)), 1)
    whole, *parts = (
        Scores(matrix, float(share) if reference else None)
        for matrix, share in zip(confusion, shares, strict=True)
    )
    return dataclasses.replace(whole, groups=dict(zip(groups, parts, strict=True)))


@jax.jit
def _inside(labels: Int[Array, "B H W"], sizes: Int[Array, "B 2"]) -> Int[Array, "B H W"]:
    """Returns labels with 255 in the padding of each image."""
    rows, columns = (jnp.arange(extent) for extent in labels.shape[1:])
    inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    return jnp.where(inside, labels, IGNORE_LABEL)


@functools.partial(jax.jit, static_argnames="num_classes")
def _count(
    predictions: Int[Array, "B H W"],
    references: Int[Array, "B H W"],
    labels: Int[Array, "B H W"],
    groups: Bool[Array, "B G"],
    num_classes: int,
) -> tuple[Int[Array, "G K K"], Int[Array, " G"]]:
    """Counts the pixels of each group by (label, prediction), and those predicted alike."""
    confusion, agreeing = [], []
    for members in groups.T:
        counted = jnp.where(members[:, None, None], labels, IGNORE_LABEL)
        confusion.append(confusion_matrix(predictions, counted, num_classes))
        alike = (predictions == references) & (counted < num_classes)
        agreeing.append(jnp.sum(alike, dtype=jnp.int32))
    return jnp.stack(confusion), jnp.stack(agreeing)


def order_by_name(
    names: Sequence[str],
    class_names: Sequence[str],
    *,
    where: str,
    accept: str,
    log: Callable[[str], None] | None,
) -> tuple[int, ...] | None:
    """Returns the order that brings a network's classes into the order of a data set's classes.

    Args:
      names: the network's classes.
      class_names: the data set's classes.
      where: the network, for messages.
      accept: the setting that matches classes by number, for messages.
      log: takes a line if the order differs.

    Returns:
      See `kdjax.utils.classes.class_order`.

    Raises:
      UserError: if the names differ.
    """
    try:
        order = class_order(names, class_names)
    except ValueError as error:
        raise UserError(
            f"{where} scores other classes than the data ({error}); set {accept} to True to match "
            "classes by number, whatever their names"
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
        cls,
        path: str,
        *,
        dtype: str = "float32",
        inference: Inference = WHOLE,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> "TrainedNetwork":
        """Reads a network checkpoint, the student of a finished run, or a model file.

            network = kdjax.load("runs/first")
            labels = network.predict(images)

        Args:
          path: a checkpoint, or the workdir of a run; or "package.module:attribute" of a network
            that includes its trained variables, or of a function that returns one; or an ONNX or
            TensorFlow Lite file.
          dtype: the dtype that the network computes in.
          inference: the views of an image; whole images by default.
          options: how to read a model file, as `config.teacher.options` takes them.

        Raises:
          UserError: if there is no network, it is damaged, or its store does not answer.
        """
        network, variables, info = serialization.load(path, dtype=dtype, options=options)
        return cls(info, network, variables, Predictor(network, info.preprocessing, inference))

    def running(
        self, network: Network, variables: Variables, info: NetworkInfo | None = None
    ) -> "TrainedNetwork":
        """Returns another network with the same inference and, without `info`, description."""
        info = info or self.info
        predictor = Predictor(network, info.preprocessing, self.predictor.inference)
        return TrainedNetwork(info, network, variables, predictor)

    def frozen(self, dtype: str) -> "TrainedNetwork":
        """Returns the network as a training step runs its teacher.

        Args:
          dtype: the dtype that the network computes in.
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

        A network with another number of classes stays as it is.

        Args:
          class_names: the data set's classes.
          where: see `order_by_name`.
          accept: see `order_by_name`.
          any_names: True to match classes by number, whatever their names.
          log: see `order_by_name`.

        Raises:
          UserError: if the names differ.
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
        """Returns the class of every pixel, int32 `[B, H, W]`, or `[H, W]` for a single image.

        Args:
          images: 8-bit RGB, `[B, H, W, 3]` or `[H, W, 3]`; or the bands and the number type that
            the network was trained on. The network is compiled for each size.

        Raises:
          UserError: if the shape or the dtype is wrong.
        """
        images, bands = np.asarray(images), self.info.bands
        shaped = images.ndim in (3, 4) and images.shape[-1] == bands.channels
        if images.dtype != bands.dtype or not shaped:
            kind = "RGB of 8 bits, " if bands == RGB else ""
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}; they must be {kind}{bands.dtype} "
                f"[B, H, W, {bands.channels}] or [H, W, {bands.channels}]"
            )
        whole = images if images.ndim == 4 else images[None]
        labels = np.asarray(self.predictor(self.variables, whole))
        return labels if images.ndim == 4 else labels[0]


def predict_examples(
    predict: Callable[[np.ndarray], Any], examples: Sequence[dict[str, Any]], batch_size: int
) -> list[np.ndarray]:
    """Returns the predicted label map [H, W] uint8 of every example.

    Batches have the size of evaluation, so that no other program is compiled.

    Args:
      predict: returns the class ids [B, H, W] of images [B, H, W, C].
      examples: each has `image` and `label`.
      batch_size: B.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_size.setdefault(example["label"].shape, []).append(index)
    predictions: dict[int, np.ndarray] = {}
    for size, indices in by_size.items():
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            # As in the batches of evaluation, all numbers of more than 8 bits are float32.
            image = examples[chunk[0]]["image"]
            dtype = image.dtype if image.dtype == np.uint8 else np.float32
            batch = np.zeros((batch_size, *size, image.shape[-1]), dtype)
            batch[: len(chunk)] = [examples[index]["image"] for index in chunk]
            found = np.asarray(predict(batch), np.uint8)
            predictions |= dict(zip(chunk, found[: len(chunk)], strict=True))
    return [predictions[index] for index in range(len(examples))]
