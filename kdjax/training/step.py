"""The training step, a pure function of (state, teacher, batch), with its state and its loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from kdjax.distillation import Distiller, Maps
from kdjax.distillation.feature_maps import array_of
from kdjax.distillation.loss import Metrics
from kdjax.models import Network, Preprocessing, Variables
from kdjax.models.network import SCORES, maps_of
from kdjax.training.label_losses import (
    MeanOver,
    RareClassOptions,
    mean_cross_entropy,
    overlap_losses,
)


@struct.dataclass
class TrainState:
    """The arrays that change during training. The teacher is not among them.

    Attributes:
      step: number of completed steps.
      seed: the seed of all random numbers of a step, such as dropout. It is part of the state, so
        that one compiled program serves every seed.
      params: {"student": parameters, "terms": parameters of the terms by name}, trained together.
      model_state: the student's other variables, such as batch norm's statistics.
      opt_state: the state of the optimizer.
      terms: the state of the distillation terms by name.
      ema: moving averages of `params["student"]` and `model_state` from `update_average`, or None.
    """

    step: Int[Array, ""]
    seed: Int[Array, ""]
    params: dict[str, PyTree]
    model_state: PyTree
    opt_state: optax.OptState
    terms: PyTree
    ema: tuple[PyTree, PyTree] | None

    def student(self) -> Variables:
        """Returns the variables to evaluate and export: the moving averages if there are any."""
        params, model_state = self.ema or (self.params["student"], self.model_state)
        return {"params": params, "state": model_state}


def update_average(average: PyTree, new: PyTree, decay: float) -> PyTree:
    """Moves averages towards new values, and replaces integers and keys by the new ones.

    Args:
      average: the averages so far.
      new: the arrays of this step.
      decay: share of the average that is kept.
    """

    def move(old: Array, now: Array) -> Array:
        if not jnp.issubdtype(now.dtype, jnp.floating):
            return now
        return decay * old + (1 - decay) * now

    return jax.tree.map(move, average, new)


def create_state(
    student: Variables,
    terms: tuple[Any, Any],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    seed: int = 0,
) -> TrainState:
    """Returns the state before the first step.

    Its arrays are copies, because a training step donates the buffers of its state, which a user's
    module may still hold.

    Args:
      student: the network's variables.
      terms: parameters and state of the distillation terms, from `Distiller.init`.
      optimizer: updates the parameters of the student and of the terms.
      ema: True to keep moving averages.
      seed: the seed of the run.
    """
    learned, carried = terms
    params = {"student": student["params"], "terms": learned}
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        model_state=student["state"],
        opt_state=optimizer.init(params),
        terms=carried,
        ema=(student["params"], student["state"]) if ema else None,
    )
    return jax.device_put(state, may_alias=False)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum of losses that trains a student.

    Attributes:
      cross_entropy: weight of the cross-entropy with the labels.
      auxiliary: weight of the auxiliary head's cross-entropy.
      distiller: the distillation terms; None for a plain student.
      mean_over: the pixels over which both cross-entropies are averaged; see `LossOptions`.
      rare: the options for rare classes. Class weights must be given.
    """

    cross_entropy: float
    auxiliary: float
    distiller: Distiller | None = None
    mean_over: MeanOver = "labelled"
    rare: RareClassOptions = dataclasses.field(default_factory=RareClassOptions)

    def __call__(
        self,
        student: Maps,
        teacher: Maps | None,
        labels: Int[Array, "B H W"],
        params: PyTree,
        state: PyTree,
        *,
        step: Int[Array, ""],
        steps: int,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        """Returns the loss, the new state of the terms, and the parts of the loss, unweighted.

        Args:
          student: the student's maps of the batch.
          teacher: the teacher's maps of the same images, if a term reads them.
          labels: train ids [B, H, W]; 255 is ignored.
          params: the parameters of the terms.
          state: the state of the terms.
          step: number of completed steps.
          steps: length of the run.
          key: the source of the terms' random numbers.
        """
        loss, parts = jnp.zeros(()), {}
        if SCORES in student:
            scores = array_of(student[SCORES])
            parts["cross_entropy"] = self._cross_entropy(scores, labels)
            loss = self.cross_entropy * parts["cross_entropy"]
            for name, (weight, value) in overlap_losses(scores, labels, self.rare).items():
                parts[name] = value
                loss += weight * value
        if "aux_logits" in student and self.auxiliary:
            scores = array_of(student["aux_logits"])
            parts["auxiliary_cross_entropy"] = self._cross_entropy(scores, labels)
            loss += self.auxiliary * parts["auxiliary_cross_entropy"]
        if self.distiller:
            distillation, (state, metrics) = self.distiller(
                params, state, student, teacher, labels, step=step, steps=steps, key=key
            )
            loss += distillation
            parts |= metrics
        return loss, (state, {"loss": loss, **parts})

    def _cross_entropy(
        self, scores: Float[Array, "B h w K"], labels: Int[Array, "B H W"]
    ) -> Float[Array, ""]:
        return mean_cross_entropy(scores, labels, self.rare, self.mean_over)


Batch = dict[str, Any]
# State that a forward pass changes: the network's statistics, and the state of the terms.
Moving = tuple[PyTree, PyTree]
TrainStep = Callable[[TrainState, Variables | None, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class PreprocessedNetwork:
    """A network and its preprocessing, which turns pixels into its input."""

    network: Network
    preprocessing: Preprocessing


class CachedMaps(Protocol):
    """The teacher's maps in a batch: a pytree of arrays with a leading axis B."""

    def like(self, student: Maps) -> Maps:
        """Returns the maps by name, at the sizes of the student's maps."""
        ...


def make_train_step(
    student: PreprocessedNetwork,
    teacher: PreprocessedNetwork | None,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    steps: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """Returns `train_step(state, teacher_variables, batch) -> (state, metrics)`, not yet jitted.

    A batch has `image` [B, H, W, 3] and `label` [B, H, W], both uint8. With `clean`, the teacher
    sees `clean` instead of `image`. With `teacher`, a `CachedMaps`, no teacher runs.

    Args:
      student: the network that is trained.
      teacher: the frozen network, if a term reads it and batches do not hold its maps.
      objective: the loss.
      optimizer: updates the parameters of the student and of the terms.
      learning_rate: the schedule inside `optimizer`, for the log.
      steps: length of the run.
      accumulate: number of micro-batches whose gradients are averaged before an update. The losses
        of each are means over its own labeled pixels, and batch norm sees each alone.
      ema_decay: decay of the moving average of the weights; 0 for no average.
    """

    def loss_and_gradients(
        state: TrainState, moving: Moving, frozen: Any, batch: Batch, index: Array
    ) -> tuple[dict[str, Any], Moving, Metrics]:
        model_state, carried = moving
        teacher_maps: Maps | None = None
        if teacher is not None:
            # Outside the differentiated function, so that no activation of the teacher is stored.
            seen = teacher.preprocessing(batch.get("clean", batch["image"]))
            output, _ = teacher.network.apply(frozen, seen, train=False, key=None)
            teacher_maps = maps_of(output)
        images = student.preprocessing(batch["image"])
        seed = jax.random.key(state.seed)
        key = jax.random.fold_in(jax.random.fold_in(seed, state.step), index)

        def loss(params: dict[str, Any]) -> tuple[Float[Array, ""], tuple[Moving, Metrics]]:
            variables = {"params": params["student"], "state": model_state}
            output, changed = student.network.apply(variables, images, train=True, key=key)
            student_maps = maps_of(output)
            targets = batch["teacher"].like(student_maps) if "teacher" in batch else teacher_maps
            value, (new_carried, metrics) = objective(
                student_maps,
                targets,
                batch["label"],
                params["terms"],
                carried,
                step=state.step,
                steps=steps,
                key=jax.random.fold_in(seed, index),
            )
            return value, ((changed["state"], new_carried), metrics)

        gradients, (moving, metrics) = jax.grad(loss, has_aux=True)(state.params)
        return gradients, moving, metrics

    def train_step(
        state: TrainState, frozen: Variables | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        moving: Moving = (state.model_state, state.terms)
        if accumulate == 1:
            gradients, moving, metrics = loss_and_gradients(
                state, moving, frozen, batch, jnp.zeros((), jnp.int32)
            )
        else:

            def micro_step(carry: Any, inputs: Any) -> tuple[Any, Metrics]:
                total, moving = carry
                gradients, moving, metrics = loss_and_gradients(state, moving, frozen, *inputs)
                return (jax.tree.map(jnp.add, total, gradients), moving), metrics

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (gradients, moving), metrics = jax.lax.scan(
                micro_step,
                (zeros, moving),
                (_micro_batches(batch, accumulate), jnp.arange(accumulate)),
            )
            gradients = jax.tree.map(lambda g: g / accumulate, gradients)
            metrics = jax.tree.map(jnp.mean, metrics)

        model_state, carried = moving
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = _at_own_rates(updates, objective)
        params: Any = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            new = (params["student"], model_state)
            ema = update_average(ema, new, ema_decay)
        metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        state = TrainState(state.step + 1, state.seed, params, model_state, opt_state, carried, ema)
        return state, metrics

    return train_step


def _at_own_rates(updates: PyTree, objective: Objective) -> PyTree:
    """Multiplies the updates of each term's parameters by the term's learning rate."""
    if objective.distiller is None:
        return updates
    rates = objective.distiller.learning_rates(updates["terms"])
    scaled = jax.tree.map(lambda x, rate: x if rate == 1 else rate * x, updates["terms"], rates)
    return {**updates, "terms": scaled}


def _micro_batches(batch: Batch, count: int) -> Batch:
    """Reshapes [B, ...] to [count, B / count, ...]; each device keeps its examples."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), batch
    )
