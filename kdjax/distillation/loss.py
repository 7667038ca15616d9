"""A distillation loss as a small class: its options are its fields.

Three lines for a function, fifteen for a class that learns, remembers and draws numbers. kdjax's
own losses, in `kdjax.distillation.builtin`, are written the same way.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from kdjax.distillation.maps import Classification, Spec

Names = str | tuple[str, ...]
SIDES = ("student", "teacher")
Metrics = dict[str, Float[Array, ""]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "student",
        "teacher",
        "labels",
        "full_labels",
        "valid",
        "classifier",
        "progress",
        "step",
        "key",
    ],
    meta_fields=["ignore_label"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a loss may read in a step.

    Maps are brought to one size, and the student's to the teacher's channels, as the term says. A
    term that names several maps has a tuple of each, in the order in which it names them.

    Attributes:
      student: the student's map [B, h, w, C], or a tuple of maps.
      teacher: the teacher's, without gradient; None where the loss reads none.
      labels: class indices at the maps' size [B, h, w], or a tuple; None where there are none.
      full_labels: at the images' size [B, H, W].
      valid: which of `labels` count: those that are not the ignore label.
      classifier: how the student's scores were made, at the maps' size; None where that is not
        known.
      progress: share of the run that is done, 0 to 1.
      step: steps done.
      key: for what is drawn at random. It depends on the seed, the step, the micro-batch, and the
        term's name alone, so that an image gets the same numbers on any number of devices.
      ignore_label: the label of pixels that do not count.
    """

    student: Any
    teacher: Any
    labels: Any
    full_labels: Int[Array, "B H W"] | None
    valid: Any
    classifier: Classification | None
    progress: Float[Array, ""]
    step: Int[Array, ""]
    key: PRNGKeyArray
    ignore_label: int = 255


def labelled(inputs: Inputs) -> tuple[Int[Array, "B h w"], Bool[Array, "B h w"]]:
    """The labels at the map's size, and which of them count.

    Raises:
      ValueError: where the batch has no labels.
    """
    if inputs.labels is None:
        raise ValueError("reads labels, and there are none")
    return inputs.labels, inputs.valid


def need_scores(*specs: Spec) -> None:
    """Requires maps of class scores; for `Loss.check`."""
    if not all(spec.scores for spec in specs):
        raise ValueError("needs class scores on both sides, as logits or aux_logits")


@dataclass_transform(kw_only_default=True, frozen_default=True)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """A term: a loss between maps of the student and of the teacher.

    Subclasses add their options as annotated fields with defaults, and become frozen dataclasses.

    Attributes:
      student: which map of the student, or several.
      teacher: which of the teacher, as many; None for a loss that needs no teacher.
      weight: what its value is multiplied with at the start of a run.
      schedule: how the weight changes over a run: "constant", or "linear" or "cosine" to
        `final_weight`.
      final_weight: the weight at the end.
      resize: which side is resized bilinearly to the other's size where they differ, "teacher" or
        "student"; "none" leaves both as they are.
      adapter: whether a 1x1 convolution, learned with the student and left out of the export, takes
        the student's map to the teacher's channels: "where_needed", "always" or "never".
      adapter_bias: whether it has a bias.
      adapter_norm: whether a batch norm follows it.
      learning_rate: of what the term learns, in times of the run's.
    """

    student: Names = "logits"
    teacher: Names | None = "logits"
    weight: float = 1.0
    schedule: str = "constant"
    final_weight: float = 0.0
    resize: str = "teacher"
    adapter: str = "where_needed"
    adapter_bias: bool = False
    adapter_norm: bool = False
    learning_rate: float = 1.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = inspect.get_annotations(cls)
        # An inherited field that gets a value without its type is meant as a default too.
        for base in cls.__mro__[1:]:
            for name, kind in inspect.get_annotations(base).items():
                if name in cls.__dict__ and name not in own:
                    own[name] = kind
        cls.__annotations__ = own
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def check(self, student: Any, teacher: Any) -> None:
        """Refuses maps that the loss is not defined on.

        Args:
          student: the `Spec` of the student's map after resizing and adapter, or a tuple.
          teacher: likewise; None where the loss reads none.

        Raises:
          ValueError: saying what is wrong with them, and what would be right.
        """

    def check_steps(self, steps: int) -> None:
        """Refuses a run that is too short, for losses that are 0 in their first steps.

        Args:
          steps: Of the whole run.

        Raises:
          ValueError: Naming what is wrong and what would be right.
        """

    def init_params(self, key: PRNGKeyArray, student: Any, teacher: Any) -> PyTree:
        """What the loss learns beside the adapter; nothing by default.

        Args:
          key: for what is drawn at random.
          student: as in `check`.
          teacher: likewise.
        """
        del key, student, teacher
        return {}

    def init_state(self, student: Any, teacher: Any) -> PyTree:
        """What the loss carries from step to step; nothing by default. Args as in `check`."""
        del student, teacher
        return {}

    def update(self, state: PyTree, inputs: Inputs) -> PyTree:
        """The state with this batch in it; made before the value is, without gradient.

        What a loss trains to an aim of its own, as a discriminator, is state, and trained here.
        """
        del inputs
        return state

    def __call__(
        self, inputs: Inputs, params: PyTree, state: PyTree
    ) -> Float[Array, ""] | tuple[Float[Array, ""], Metrics]:
        """The value, or the value and numbers to log beside it by name."""
        raise TypeError(f"{type(self).__name__} has no __call__: it must return the loss's value")

    def weight_at(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """The weight when a share of the run is done."""
        return SCHEDULES[self.schedule](self.weight, self.final_weight, progress)

    def names(self, side: str) -> tuple[str, ...]:
        """The maps that it reads of "student" or "teacher"."""
        named = getattr(self, side)
        return () if named is None else (named,) if isinstance(named, str) else tuple(named)

    def is_adapted(self, student: Spec, teacher: Spec) -> bool:
        """Whether an adapter takes such a map of the student to the channels of the teacher's."""
        if self.adapter == "where_needed":
            return student.channels != teacher.channels
        return self.adapter == "always"

    def specs_as_read(self, student: Sequence[Spec], teacher: Sequence[Spec]) -> tuple[Any, Any]:
        """The specs of both sides' maps as the loss gets them, resized and adapted.

        Args:
          student: of the maps that it names.
          teacher: likewise.

        Returns:
          For each side a spec, or a tuple where it names several maps; None for a teacher that it
          does not read.
        """
        students, teachers = list(student), list(teacher)
        for index, (mine, other) in enumerate(zip(student, teacher, strict=False)):
            if self.is_adapted(mine, other):
                students[index] = dataclasses.replace(mine, channels=other.channels)
            if self.resize != "none":
                kept = students[index] if self.resize == "teacher" else other
                place = {"stride": kept.stride, "size": kept.size}
                students[index] = dataclasses.replace(students[index], **place)
                teachers[index] = dataclasses.replace(other, **place)
        read = students[0] if isinstance(self.student, str) else tuple(students)
        if self.teacher is None:
            return read, None
        return read, teachers[0] if isinstance(self.teacher, str) else tuple(teachers)

    def describe(self) -> str:
        """The loss, its maps and its own options in a line."""
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in COMMON
        }
        said = ", ".join(f"{key} {value}" for key, value in options.items())
        maps = ", ".join(
            named if isinstance(named, str) else "+".join(named)
            for named in (self.student, self.teacher)
            if named is not None
        )
        return f"{type(self).__name__}({maps}{'; ' if said else ''}{said})"


SCHEDULES: dict[str, Callable[..., Float[Array, ""]]] = {
    "constant": lambda start, end, progress: jnp.full_like(progress, start),
    "linear": lambda start, end, progress: start + (end - start) * progress,
    "cosine": lambda start, end, progress: (
        end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2
    ),
}

COMMON = tuple(field.name for field in dataclasses.fields(Loss))
# What a step tells a function, or leaves at its default, as it is compiled for the whole batch.
_GIVEN = ("ignore_label", "axis_name")
_POSITIONAL = (("student", "teacher"), ("student", "teacher", "labels"))


@functools.cache
def loss_class(target: Callable[..., Any] | type) -> type[Loss]:
    """The class of a loss: itself, or one made of a function.

    Args:
      target: a subclass of `Loss`, or a function (student, teacher, *, ...) or
        (student, teacher, labels, *, ...) of arrays, whose plain mean is the loss. Its keyword
        arguments become the fields.

    Raises:
      ValueError: for anything else.
    """
    if isinstance(target, type) and issubclass(target, Loss):
        return target
    name = getattr(target, "__name__", repr(target))
    if not callable(target) or isinstance(target, type):
        raise ValueError(f"{name} is neither a function nor a subclass of distillation.Loss")
    function: Callable[..., Array] = target
    parameters = inspect.signature(function).parameters.values()
    positional = tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    options = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in _GIVEN]
    ignores = any(p.name == "ignore_label" for p in parameters)
    if positional not in _POSITIONAL:
        raise ValueError(
            f"{name}({', '.join(positional)}) must take (student, teacher) or (student, teacher, "
            "labels), and its options by keyword alone, after a *"
        )
    if clash := [p.name for p in options if p.name in COMMON]:
        raise ValueError(f"{name} has an option called {clash[0]}, which every term has; rename it")

    def value(self: Loss, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        del params, state
        given = {option.name: getattr(self, option.name) for option in options}
        if ignores:
            given["ignore_label"] = inputs.ignore_label
        labels = (labelled(inputs)[0],) if "labels" in positional else ()
        return jnp.mean(function(inputs.student, inputs.teacher, *labels, **given))

    defaults = {p.name: p.default for p in options if p.default is not p.empty}
    return type(
        name,
        (Loss,),
        {
            "__annotations__": {option.name: Any for option in options},
            "__call__": value,
            "__doc__": target.__doc__,
            "__module__": target.__module__,
            **defaults,
        },
    )
