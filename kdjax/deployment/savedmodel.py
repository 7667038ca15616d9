"""TensorFlow's SavedModel: StableHLO inside a TensorFlow function, by jax2tf."""

import pathlib
from collections.abc import Sequence
from typing import Any

from kdjax.deployment._tensorflow import tensorflow
from kdjax.deployment.labelling import Label, Size
from kdjax.deployment.stablehlo import PLATFORMS


def write(
    label: Label,
    size: Size,
    path: pathlib.Path,
    *,
    batch: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the folder; its one signature takes `images` and returns `labels`.

    Args:
      label: what is written.
      size: of the images.
      path: the folder.
      batch: how many images it takes at once; None leaves it open.
      platforms: where it can run.
    """
    tf = tensorflow()
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        label,
        polymorphic_shapes=[size.symbolic] if batch is None else None,
        with_gradient=False,
        native_serialization_platforms=platforms,
    )

    def labels(images: Any) -> dict[str, Any]:
        return {"labels": converted(images)}

    images = tf.TensorSpec([batch, *size, 3], tf.uint8, name="images")
    # autograph would rewrite Python that JAX has to trace as it is.
    function = tf.function(labels, input_signature=[images], autograph=False)
    try:
        tf.saved_model.save(tf.Module(), str(path), signatures={"serving_default": function})
    # TensorFlow's own, also where a disk is full: "PATH; what the system says [Op:SaveV2]".
    except tf.errors.OpError as error:
        raise OSError(error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error


def read(path: pathlib.Path) -> Label:
    """Loads it."""
    tf = tensorflow()
    # The signature lives no longer than the model that it comes from.
    model = tf.saved_model.load(str(path))
    return lambda images: model.signatures["serving_default"](images=tf.constant(images))[
        "labels"
    ].numpy()
