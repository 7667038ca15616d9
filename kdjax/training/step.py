"""One training step, a pure function of (state, teacher, batch) under jit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from kdjax.distillation import Maps
from kdjax.distillation.maps import array_of
from kdjax.models import Network, Preprocessing, Variables
from kdjax.models.network import maps_of
from kdjax.training import cached_scores
from kdjax.training.objective import Objective
from kdjax.training.state import TrainState, update_average

Batch = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]
# What a forward pass changes beside the gradients: the network's statistics, and the terms' state.
Moving = tuple[PyTree, PyTree]
TrainStep = Callable[[TrainState, Variables | None, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Side:
    """A network in a step, and how pixels become its input."""

    network: Network
    preprocessing: Preprocessing


def make_train_step(
    student: Side,
    teacher: Side | None,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    steps: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """Returns `train_step(state, teacher_variables, batch) -> (state, metrics)`, not yet jitted.

    A batch holds `image` [B, H, W, 3] and `label` [B, H, W], both uint8. Where it holds `clean`
    too, the teacher sees that instead of `image`. Where it holds `cached`, no teacher runs: these
    are its `scores` [B, H', W', K] on the whole images, and the `size` [B, 2] of each without
    padding; `place` [B, 5] then says where the crops were taken, as `cached_scores.sample` has it.

    Args:
      student: the network that is trained.
      teacher: the frozen network, where a term reads it and batches do not hold its scores.
      objective: what is minimised.
      optimizer: applied to the student's parameters and what the terms learn.
      learning_rate: the schedule inside `optimizer`, for the log.
      steps: length of the run.
      accumulate: micro-batches whose gradients are averaged before one update. Each is that of its
        own losses, means over its own labelled pixels: batch norm and such means see less at once.
      ema_decay: of the moving average of the weights; 0 for none.
    """

    def loss_and_gradients(
        state: TrainState, moving: Moving, frozen: Any, batch: Batch, index: Array
    ) -> tuple[dict[str, Any], Moving, Metrics]:
        model_state, carried = moving
        theirs: Maps | None = None
        if teacher is not None:
            # Outside the differentiated function: no activation of the teacher is kept.
            seen = teacher.preprocessing(batch.get("clean", batch["image"]))
            output, _ = teacher.network.apply(frozen, seen, train=False, key=None)
            theirs = maps_of(output)
        images = student.preprocessing(batch["image"])
        seed = jax.random.key(state.seed)
        key = jax.random.fold_in(jax.random.fold_in(seed, state.step), index)

        def loss(params: dict[str, Any]) -> tuple[Float[Array, ""], tuple[Moving, Metrics]]:
            variables = {"params": params["student"], "state": model_state}
            output, changed = student.network.apply(variables, images, train=True, key=key)
            ours = maps_of(output)
            taught = _cached(batch, ours) if "cached" in batch else theirs
            value, (new_carried, metrics) = objective(
                ours,
                taught,
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

    def train_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
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


def _cached(batch: Batch, student: Maps) -> Maps:
    """The teacher's scores on the crops, from those on the whole images."""
    logits = cached_scores.sample(
        batch["cached"]["scores"],
        batch["cached"]["size"],
        batch["place"],
        crop_size=batch["image"].shape[1:3],
        grid=array_of(student["logits"]).shape[1:3],
    )
    return {"logits": logits}


def _at_own_rates(updates: Any, objective: Objective) -> Any:
    """Updates of what the terms learn, at the learning rates of their own."""
    if objective.distiller is None:
        return updates
    rates = objective.distiller.learning_rates(updates["terms"])
    scaled = jax.tree.map(lambda x, rate: x if rate == 1 else rate * x, updates["terms"], rates)
    return {**updates, "terms": scaled}


def _micro_batches(batch: Batch, count: int) -> Batch:
    """Reshapes [B, ...] to [count, B / count, ...], each device keeping its own examples."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), batch
    )
