"""The distillation terms of a run as one object: their parameters, state, and weighted sum."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from kdjax.distillation.feature_maps import (
    Classification,
    Maps,
    Spec,
    array_of,
    fits,
    spec_of,
    zeros_of,
)
from kdjax.distillation.layers import adapt, init_adapter
from kdjax.distillation.loss import SIDES, Inputs, Loss, Metrics, one_or_all
from kdjax.distillation.terms import make_loss
from kdjax.losses import resize, resize_labels
from kdjax.utils.errors import RAISED_BY_USERS, UserError

# Rows and columns of the smallest map on which terms are traced, if no image size is given.
TRACED_CELLS = 64


class _Batch(NamedTuple):
    """The arguments of a step that all terms share, as `Distiller.__call__` takes them."""

    student: Maps
    teacher: Maps | None
    labels: Int[Array, "B H W"] | None
    step: Int[Array, ""]
    progress: Float[Array, ""]
    key: PRNGKeyArray


class Distiller:
    """Distillation terms between two networks, for any training loop.

    Args:
      terms: the terms by name, each a `Loss` or the result of `term`. Metrics use the same names.
      student: the student's maps by name: arrays, `jax.ShapeDtypeStruct`s, or `Spec`s.
      teacher: the teacher's maps. None if no term reads the teacher.
      image_size: height and width of the images, from which the strides of the maps follow.
      ignore_label: the label of pixels that do not count.
      where: the name of the terms in error messages.

    Raises:
      UserError: if a loss, an option, or a map is unknown, if maps do not fit together, or if a
        term raises an error when it is traced on maps of these shapes. The message names the term.

    Attributes:
      terms: the losses by name.

    Examples:
      >>> distiller = Distiller({"cwd": term("cwd")}, student=student_maps, teacher=teacher_maps)
      >>> params, state = distiller.init(jax.random.key(0))
      >>> loss, (state, metrics) = distiller(
      ...     params, state, student_maps, teacher_maps, labels, step=step, steps=1000, key=key)
    """

    def __init__(
        self,
        terms: Mapping[str, Loss | Mapping[str, Any]],
        *,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any] | None = None,
        image_size: tuple[int, int] | None = None,
        ignore_label: int = 255,
        where: str = "terms",
    ):
        self.ignore_label = ignore_label
        self._where = where
        self._image_size = image_size
        self._specs = {
            side: {name: spec_of(name, value, image_size) for name, value in (maps or {}).items()}
            for side, maps in zip(SIDES, (student, teacher), strict=True)
        }
        self.terms = {name: make_loss(f"{where}.{name}", entry) for name, entry in terms.items()}
        for name, loss in self.terms.items():
            self._check(name, loss)

    @property
    def needs_teacher(self) -> bool:
        """Returns True if any term reads the teacher."""
        return any(loss.teacher is not None for loss in self.terms.values())

    def maps(self, side: str) -> set[str]:
        """Returns the names of the maps that "student" or "teacher" has."""
        return set(self._specs[side])

    def reads(self, side: str) -> set[str]:
        """Returns the names of the maps that the terms read of "student" or "teacher"."""
        return {name for loss in self.terms.values() for name in loss.names(side)}

    def describe(self) -> list[str]:
        """Returns a line for each term: its loss, its maps, its options, and its adapters."""
        lines = []
        for name, loss in self.terms.items():
            adapters = [
                f", adapter 1x1 {student.channels} -> {teacher.channels}"
                for student, teacher in self._pairs(loss)
                if loss.is_adapted(student, teacher)
            ]
            lines.append("".join((f"{name}: {loss.describe()}", *adapters)))
        return lines

    def depend_on_steps(self) -> list[str]:
        """Returns the names of the terms that depend on the number of steps of the run."""
        found = []
        for name, loss in self.terms.items():
            traced = jax.make_jaxpr(functools.partial(self._trace, name, loss))(1.0).jaxpr
            _, (used,) = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
            if used:
                found.append(name)
        return found

    def init(self, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Returns the parameters and the state of the terms, each by the name of the term."""
        params: dict[str, PyTree] = {}
        state: dict[str, PyTree] = {}
        for name, loss in self.terms.items():
            for collected, found in zip((params, state), self._init(name, loss, key), strict=True):
                if jax.tree.leaves(found):
                    collected[name] = found
        return params, state

    def learning_rates(self, params: PyTree) -> PyTree:
        """Returns the factor of the run's learning rate for each leaf of `params`."""
        return {
            name: jax.tree.map(lambda _, rate=self.terms[name].learning_rate: rate, learned)
            for name, learned in params.items()
        }

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        student: Maps,
        teacher: Maps | None = None,
        labels: Int[Array, "B H W"] | None = None,
        *,
        step: Int[Array, ""] | int,
        steps: Float[Array, ""] | int,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        """Returns the weighted sum of the terms.

        A pure function, to be differentiated with respect to `params` and to whatever made
        `student`.

        Args:
          params: the parameters of the terms, as `init` returns them.
          state: the state of the terms, as `init` returns it.
          student: the student's maps by name. Losses that augment features need a `Classification`.
          teacher: the teacher's maps, which receive no gradient. None if no term reads them.
          labels: class indices at the size of the images. None if no term reads them.
          step: the number of steps done.
          steps: the number of steps of the whole run.
          key: a random key, the same in every step. Each step and term derives its own from it.

        Returns:
          The loss, and the new state with the metrics. The metrics are the unweighted value of
          each term by its name, and further numbers as "term/name".
        """
        step = jnp.asarray(step, jnp.int32)
        batch = _Batch(student, teacher, labels, step, step / steps, key)
        total = jnp.zeros(())
        after: dict[str, PyTree] = dict(state)
        metrics: Metrics = {}
        for name, loss in self.terms.items():
            value, new_state, logged = self._value(
                name, loss, params.get(name, {}), state.get(name, {}), batch
            )
            if name in state:
                after[name] = new_state
            metrics[name] = value
            metrics |= {f"{name}/{part}": jnp.asarray(number) for part, number in logged.items()}
            total += loss.weight_at(batch.progress) * value
        return total, (after, metrics)

    def _value(
        self, name: str, loss: Loss, params: PyTree, state: PyTree, batch: _Batch
    ) -> tuple[Float[Array, ""], PyTree, Metrics]:
        """Returns the value of a term, its new state, and further numbers to log."""
        inputs = self._inputs(name, loss, params, batch)
        state = jax.tree.map(_constant, loss.update(state, jax.tree.map(_constant, inputs)))
        found = loss(inputs, params.get("loss", {}), state)
        value, logged = found if isinstance(found, tuple) else (found, {})
        if (shape := jnp.shape(value)) != ():
            raise ValueError(f"the value must be a single number, got {list(shape)}; take a mean")
        for part, number in {name: value, **{f"{name}/{x}": y for x, y in logged.items()}}.items():
            if jnp.iscomplexobj(number):
                raise ValueError(f'"{part}" is complex; it must be a real number')
        return value, state, logged

    def _inputs(self, name: str, loss: Loss, params: PyTree, batch: _Batch) -> Inputs:
        """Returns the inputs of a term, with its maps adapted and resized."""
        self._check_maps(name, loss, batch)
        student = [batch.student[map_name] for map_name in loss.names("student")]
        first, student = student[0], [array_of(value) for value in student]
        teacher = [
            _constant(array_of((batch.teacher or {})[map_name]))
            for map_name in loss.names("teacher")
        ]
        for index, adapter in params.get("adapter", {}).items():
            student[int(index)] = adapt(adapter, student[int(index)])
        if loss.resize != "none":
            for index, other in enumerate(teacher):
                size = (student[index] if loss.resize == "teacher" else other).shape[1:3]
                student[index] = resize(student[index], size)
                teacher[index] = resize(other, size)
        classifier = None
        if isinstance(first, Classification):
            # Resizing commutes with a 1x1 convolution.
            resized = resize(first.inputs, student[0].shape[1:3])
            classifier = dataclasses.replace(first, logits=student[0], inputs=resized)
        labels = valid = None
        if batch.labels is not None:
            labels = [resize_labels(batch.labels, x.shape[1:3]) for x in student]
            valid = [x != self.ignore_label for x in labels]
        return Inputs(
            student=one_or_all(student, loss.student),
            teacher=one_or_all(teacher, loss.teacher),
            labels=one_or_all(labels, loss.student),
            full_labels=batch.labels,
            valid=one_or_all(valid, loss.student),
            classifier=classifier,
            progress=batch.progress,
            step=batch.step,
            key=jax.random.fold_in(jax.random.fold_in(batch.key, batch.step), _number(name)),
            ignore_label=self.ignore_label,
        )

    def _check_maps(self, name: str, loss: Loss, batch: _Batch) -> None:
        """Requires maps that agree with the specs.

        A loss cannot check this: maps with channels first, or with rows and columns in one axis,
        look like maps of another size.
        """
        # Cached scores of the teacher have the size of the student's maps.
        read = {"logits", *loss.names("student")} & batch.student.keys()
        cached = [array_of(batch.student[map_name]).shape[1:3] for map_name in read]
        labels = batch.labels
        for side, maps in zip(SIDES, (batch.student, batch.teacher), strict=True):
            for map_name in loss.names(side):
                if maps is None or map_name not in maps:
                    raise ValueError(
                        f'terms.{name} reads "{map_name}" of the {side}, which is missing'
                    )
                found, spec = array_of(maps[map_name]), self._specs[side][map_name]
                fine = found.ndim == 4 and found.shape[3] == spec.channels
                as_student = side == "teacher" and found.shape[1:3] in cached
                if fine and labels is not None and spec.stride and not as_student:
                    fine = fits(found.shape[1:3], labels.shape[1:], spec.stride)
                if not fine:
                    size = spec.size_on(labels.shape[1:] if labels is not None else None)
                    wanted = ", ".join(map(str, (found.shape[0], *size, spec.channels)))
                    raise UserError(
                        f'{self._where}.{name}.{side}: "{map_name}" of the {side} is '
                        f"{list(found.shape)}; it must be [{wanted}], channels last"
                    )

    def _init(self, name: str, loss: Loss, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        key = jax.random.fold_in(key, _number(name))
        adapters = {
            str(index): init_adapter(
                jax.random.fold_in(key, index),
                student.channels,
                teacher.channels,
                bias=loss.adapter_bias,
                norm=loss.adapter_norm,
            )
            for index, (student, teacher) in enumerate(self._pairs(loss))
            if loss.is_adapted(student, teacher)
        }
        student, teacher = loss.specs_as_read(*self._specs_of(loss))
        own = loss.init_params(jax.random.fold_in(key, len(adapters)), student, teacher)
        params = {"adapter": adapters} if adapters else {}
        if jax.tree.leaves(own):
            params["loss"] = own
        return params, loss.init_state(student, teacher)

    def _specs_of(self, loss: Loss) -> tuple[list[Spec], list[Spec]]:
        """Returns the specs of the maps that a loss names, of the student and of the teacher."""
        students, teachers = (
            [self._specs[side][name] for name in loss.names(side)] for side in SIDES
        )
        return students, teachers

    def _pairs(self, loss: Loss) -> list[tuple[Spec, Spec]]:
        return list(zip(*self._specs_of(loss), strict=False))

    def _check(self, name: str, loss: Loss) -> None:
        """Finds the errors of the first step, from the specs and by tracing the term."""
        where = f"{self._where}.{name}"
        for side in SIDES:
            specs = self._specs[side]
            for map_name in loss.names(side):
                if map_name not in specs:
                    raise UserError(
                        f'{where}.{side}: the {side} has no map "{map_name}"; it has '
                        f"{', '.join(specs) or 'none'}"
                    )
        counts = [len(loss.names(side)) for side in SIDES]
        if loss.teacher is not None and counts[0] != counts[1] and loss.resize != "none":
            raise UserError(
                f"{where} names {counts[0]} maps of the student and {counts[1]} of the teacher; "
                'name as many of each, or set resize to "none"'
            )
        for student, teacher in self._pairs(loss):
            if student.scores and teacher.scores and student.channels != teacher.channels:
                raise UserError(
                    f"{where}: the student scores {student.channels} classes and the teacher "
                    f"{teacher.channels}; class scores can be compared only over the same classes"
                )
        try:
            loss.check(*loss.specs_as_read(*self._specs_of(loss)))
            jax.eval_shape(lambda: self._trace(name, loss))
        except UserError:
            raise
        except RAISED_BY_USERS as error:
            kind = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
            raise UserError(f"{where}: {kind}{error}") from error

    def _trace(self, name: str, loss: Loss, steps: Float[Array, ""] | int = 1) -> Any:
        """Returns the weighted value of a term, its state, and its metrics on maps of zeros."""
        key = jax.random.key(0)
        students, teachers = self._specs_of(loss)
        widest = max(spec.stride or 1 for spec in (*students, *teachers))
        images = self._image_size or (widest * TRACED_CELLS, widest * TRACED_CELLS)
        student, teacher = (
            dict(zip(loss.names(side), [zeros_of(spec, images) for spec in specs], strict=True))
            for side, specs in zip(SIDES, (students, teachers), strict=True)
        )
        labels, step = jnp.zeros((2, *images), jnp.int32), jnp.zeros((), jnp.int32)
        batch = _Batch(student, teacher, labels, step, step / steps, key)
        value, state, logged = self._value(name, loss, *self._init(name, loss, key), batch)
        return loss.weight_at(batch.progress) * value, state, logged


def _constant(leaf: Any) -> Any:
    """Stops the gradient of a leaf. Keys and integers have none."""
    return jax.lax.stop_gradient(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def _number(name: str) -> int:
    """Returns a number for a term's name, the same in every process."""
    return zlib.crc32(name.encode())
