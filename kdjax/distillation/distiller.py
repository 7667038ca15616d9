"""Distillation terms as one object: what they learn and carry, and their weighted sum."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from kdjax.distillation.loss import SIDES, Inputs, Loss, Metrics
from kdjax.distillation.maps import (
    Classification,
    Maps,
    Spec,
    adapt,
    array_of,
    blank,
    constant,
    fits,
    init_adapter,
    spec_of,
)
from kdjax.distillation.terms import make_loss
from kdjax.errors import RAISED_BY_USERS, UserError
from kdjax.losses import resize, resize_labels

# Of the smallest map a side, in the trace that looks for mistakes, where nobody said its size.
TRACED_CELLS = 64


class Distiller:
    """Distillation terms between two networks, for any training loop.

    Args:
      terms: by name, each a `Loss` or what `term` returns. The names are those of the metrics.
      student: the student's maps by name: arrays, `jax.ShapeDtypeStruct`s, or `Spec`s.
      teacher: the teacher's; None where no term reads any.
      image_size: height and width of the images, where the strides of maps are to be known.
      ignore_label: the label of pixels that do not count.
      where: what error messages call the terms.

    Raises:
      UserError: for an unknown loss, option or map, maps that do not go together, and whatever
        tracing the terms on such maps raises; the message names the term.

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
        """Whether any term reads the teacher."""
        return any(loss.teacher is not None for loss in self.terms.values())

    def reads(self, side: str) -> set[str]:
        """The maps that the terms read of "student" or "teacher"."""
        return {name for loss in self.terms.values() for name in loss.names(side)}

    def describe(self) -> list[str]:
        """A line for each term: its loss, its maps, its options, and what it learns."""
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
        """What the terms learn, and what they carry, each by the name of the term."""
        params: dict[str, PyTree] = {}
        state: dict[str, PyTree] = {}
        for name, loss in self.terms.items():
            for collected, found in zip((params, state), self._init(name, loss, key), strict=True):
                if jax.tree.leaves(found):
                    collected[name] = found
        return params, state

    def learning_rates(self, params: PyTree) -> PyTree:
        """For each leaf of `params`, its learning rate in times of the run's."""
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
        """The weighted sum of the terms.

        A pure function, to be differentiated with respect to `params` and what made `student`.

        Args:
          params: what the terms learn, as `init` returns it.
          state: what they carry, likewise.
          student: the student's maps by name; `Classification` where scores are augmented.
          teacher: the teacher's, which get no gradient; None where no term reads them.
          labels: class indices at the images' size; None where no term reads them.
          step: steps done.
          steps: of the whole run.
          key: the same in every step; each step and term draws its own numbers.

        Returns:
          The loss, and the new state with the metrics: the unweighted value of each term by its
          name, and what it logs beside as "term/name".
        """
        step = jnp.asarray(step, jnp.int32)
        total = jnp.zeros(())
        carried: dict[str, PyTree] = dict(state)
        metrics: Metrics = {}
        for name, loss in self.terms.items():
            learned = params.get(name, {})
            inputs = self._inputs(
                name, loss, learned, student, teacher, labels, step, step / steps, key
            )
            before = state.get(name, {})
            after = jax.tree.map(constant, loss.update(before, jax.tree.map(constant, inputs)))
            if name in state:
                carried[name] = after
            found = loss(inputs, learned.get("loss", {}), after)
            value, beside = found if isinstance(found, tuple) else (found, {})
            if (shape := jnp.shape(value)) != ():
                raise ValueError(
                    f"the value must be a single number, got {list(shape)}; take a mean"
                )
            logged = {name: value} | {f"{name}/{part}": x for part, x in beside.items()}
            for part, number in logged.items():
                if jnp.iscomplexobj(number):
                    raise ValueError(f'"{part}" is complex; it must be a real number')
                metrics[part] = jnp.asarray(number)
            total += loss.weight_at(inputs.progress) * value
        return total, (carried, metrics)

    def _inputs(
        self,
        name: str,
        loss: Loss,
        learned: PyTree,
        student: Maps,
        teacher: Maps | None,
        labels: Int[Array, "B H W"] | None,
        step: Int[Array, ""],
        progress: Float[Array, ""],
        key: PRNGKeyArray,
    ) -> Inputs:
        """What the term reads: resized and adapted."""
        self._check_maps(name, loss, student, teacher, labels)
        student_values = [student[map_name] for map_name in loss.names("student")]
        teacher_maps = (
            []
            if loss.teacher is None or teacher is None
            else [
                jax.tree.map(constant, array_of(teacher[map_name]))
                for map_name in loss.names("teacher")
            ]
        )
        student_maps = [array_of(value) for value in student_values]
        for index, adapted in learned.get("adapter", {}).items():
            student_maps[int(index)] = adapt(adapted, student_maps[int(index)])
        if loss.resize != "none":
            for index, other in enumerate(teacher_maps):
                size = (student_maps[index] if loss.resize == "teacher" else other).shape[1:3]
                student_maps[index] = resize(student_maps[index], size)
                teacher_maps[index] = resize(other, size)
        first = student_values[0]
        classifier = None
        if isinstance(first, Classification):
            # Resizing and a 1x1 convolution may change places.
            resized = resize(first.inputs, student_maps[0].shape[1:3])
            classifier = dataclasses.replace(first, logits=student_maps[0], inputs=resized)
        small = None
        if labels is not None:
            small = tuple(resize_labels(labels, x.shape[1:3]) for x in student_maps)
        valid = None if small is None else tuple(x != self.ignore_label for x in small)

        def one_or_all(values: Any, named: Any) -> Any:
            return values if values is None or not isinstance(named, str) else values[0]

        return Inputs(
            student=one_or_all(tuple(student_maps), loss.student),
            teacher=one_or_all(tuple(teacher_maps), loss.teacher) if teacher_maps else None,
            labels=one_or_all(small, loss.student),
            full_labels=labels,
            valid=one_or_all(valid, loss.student),
            classifier=classifier,
            progress=progress,
            step=step,
            key=jax.random.fold_in(jax.random.fold_in(key, step), _number(name)),
            ignore_label=self.ignore_label,
        )

    def _check_maps(
        self,
        name: str,
        loss: Loss,
        student: Maps,
        teacher: Maps | None,
        labels: Int[Array, "B H W"] | None,
    ) -> None:
        """Requires the maps to be those that the specs speak of.

        Losses cannot know it: channels that come first, or rows and columns in one axis, pass for
        maps of other sizes.
        """
        # Cached scores of the teacher come at the size of the student's.
        read = {"logits", *loss.names("student")} & student.keys()
        cached = [array_of(student[map_name]).shape[1:3] for map_name in read]
        for side, maps in zip(SIDES, (student, teacher), strict=True):
            for map_name in loss.names(side):
                if maps is None or map_name not in maps:
                    raise ValueError(
                        f'terms.{name} reads "{map_name}" of the {side}, which is not there'
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
        """The specs of the maps that a loss names, of the student and of the teacher."""
        students, teachers = (
            [self._specs[side][name] for name in loss.names(side)] for side in SIDES
        )
        return students, teachers

    def _pairs(self, loss: Loss) -> list[tuple[Spec, Spec]]:
        return list(zip(*self._specs_of(loss), strict=False))

    def _check(self, name: str, loss: Loss) -> None:
        """Finds what would fail in the first step: by the specs, and by tracing it on such maps."""
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
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error
        except RAISED_BY_USERS as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error

    def _trace(self, name: str, loss: Loss, steps: Float[Array, ""] | int = 1) -> Any:
        alone = object.__new__(Distiller)
        alone.__dict__ = {**self.__dict__, "terms": {name: loss}}
        params, state = alone.init(jax.random.key(0))
        specs = [self._specs[side][map_name] for side in SIDES for map_name in loss.names(side)]
        widest = max(spec.stride or 1 for spec in specs)
        images = self._image_size or (widest * TRACED_CELLS, widest * TRACED_CELLS)
        student, teacher = (
            {map_name: blank(self._specs[side][map_name], images) for map_name in loss.names(side)}
            for side in SIDES
        )
        labels = jnp.zeros((2, *images), jnp.int32)
        return alone(
            params, state, student, teacher, labels, step=0, steps=steps, key=jax.random.key(0)
        )


def _number(name: str) -> int:
    """A number of a term's name, the same in every process."""
    return zlib.crc32(name.encode())
