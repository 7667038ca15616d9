"""The loss on held-out images, by which a student without class scores is judged."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller, Maps
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.models import Variables
from kdjax.models.network import maps_of
from kdjax.training.loop import Interruption
from kdjax.training.sharding import Placement
from kdjax.training.step import PreprocessedNetwork, TrainState
from kdjax.utils.errors import UserError


class HeldOutLoss:
    """The mean distillation loss of single images. Every process must call the methods together.

    Args:
      options: the options of the run.
      images: the data set.
      placement: the mesh.
      student: the student.
      state: the state before the first step.
      teacher: the teacher as a network, or None.
      distiller: the terms.
      interruption: may stop an evaluation between two batches.

    Raises:
      UserError: if a term reads a teacher of which only files are known, or fails on whole images
        without labels.
    """

    def __init__(
        self,
        options: RunOptions,
        images: RunData,
        placement: Placement,
        student: PreprocessedNetwork,
        state: TrainState,
        teacher: TrainedNetwork | None,
        distiller: Distiller,
        interruption: Interruption,
    ):
        if distiller.needs_teacher and teacher is None:
            raise UserError(
                "config.teacher.logits: a student without class scores is judged by its loss on "
                "held-out images, of which the files hold nothing; set config.teacher.checkpoint"
            )
        self._options, self._images, self._placement = options, images, placement
        self._student, self._teacher, self._distiller = student, teacher, distiller
        self._interruption = interruption
        self._sums = jax.jit(self._sums_of_batch)
        # Here, so that a mistake is an error before training.
        for size in images.evaluated_sizes():
            bands = images.bands
            shape = (options.data.eval_batch_size, *size, bands.channels)
            pixels = jax.ShapeDtypeStruct(shape, bands.batch_dtype)
            valid = jax.ShapeDtypeStruct(pixels.shape[:1], jnp.bool)
            try:
                jax.eval_shape(self._sums_of_batch, state, self._frozen, pixels, valid)
            except ValueError as error:
                raise UserError(
                    f"config.terms: on a whole image without labels: {error}"
                ) from error

    def loss(self, state: TrainState, split: str) -> float:
        """Returns the mean over the images of a split, each as a batch of its own.

        Labels are not read, and padding counts.

        Raises:
          Preempted: if the run must stop.
        """
        total, count = 0.0, 0
        for batch in self._interruption.stop_between(self._images.eval_batches(split)):
            arrays = self._placement.put_batch({key: batch[key] for key in ("image", "valid")})
            found = self._sums(state, self._frozen, arrays["image"], arrays["valid"])
            part, images = jax.device_get(found)
            total, count = total + float(part), count + int(images)
        return total / max(count, 1)

    def final_losses(self, state: TrainState) -> dict[str, float]:
        """Returns the loss on the validation and the test split."""
        data = self._options.data
        splits = filter(None, (data.val_split, data.test_split))
        return {split: self.loss(state, split) for split in splits}

    @property
    def _frozen(self) -> Variables | None:
        return self._teacher and self._teacher.variables

    def _sums_of_batch(
        self,
        state: TrainState,
        frozen: Variables | None,
        pixels: Shaped[Array, "B H W C"],
        valid: Bool[Array, " B"],
    ) -> tuple[Float[Array, ""], Array]:
        """Returns the sum of the losses of the valid images, and their number."""
        student = _maps(self._student, state.student(), pixels)
        teacher = None
        if self._teacher is not None:
            info, network = self._teacher.info, self._teacher.network
            teacher = _maps(PreprocessedNetwork(network, info.preprocessing), frozen, pixels)

        def of_image(student: PyTree, teacher: PyTree) -> Float[Array, ""]:
            student, teacher = jax.tree.map(lambda x: x[None], (student, teacher))
            value, _ = self._distiller(
                state.params["terms"],
                state.terms,
                student,
                teacher,
                step=state.step,
                steps=self._options.steps,
                key=jax.random.key(state.seed),
            )
            return value

        losses = jax.vmap(of_image)(
            *(
                {name: maps[name] for name in self._distiller.reads(side)} if maps else None
                for side, maps in (("student", student), ("teacher", teacher))
            )
        )
        return jnp.sum(jnp.where(valid, losses, 0.0)), jnp.sum(valid)


def _maps(network: PreprocessedNetwork, variables: Variables | None, pixels: Array) -> Maps:
    assert variables is not None
    images = network.preprocessing(pixels)
    return maps_of(network.network.apply(variables, images, train=False, key=None)[0])
