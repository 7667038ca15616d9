"""The base class of distillation losses, whose fields are the options of a term.

A plain function needs no class of its own: `loss_class` makes one. A class may learn parameters,
keep state between steps, and draw random numbers. The built-in losses in
`kdjax.distillation.methods` are written in the same way as a user's.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from kdjax.distillation.feature_maps import Classification, Spec
from kdjax.losses import valid_mean
from kdjax.utils.schema import NOT_NEGATIVE

Names = str | tuple[str, ...]
SIDES = ("student", "teacher")
Metrics = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a loss in one step.

    The maps have one size, and the student's maps have the teacher's channels, as the term's
    `resize` and `adapter` say. If a term names several maps, each field is a tuple in their order.

    Attributes:
      student: the student's map `[B, h, w, C]`, or a tuple of maps.
      teacher: the teacher's map, without gradient. None if the loss does not read the teacher.
      labels: class indices at the size of the map, `[B, h, w]`, or a tuple. None without labels.
      full_labels: class indices at the size of the images, `[B, H, W]`.
      valid: True for each entry of `labels` that is not the ignore label.
      classifier: how the student's scores were made, at the size of the map. None if unknown.
      progress: the share of the run that is done, 0 to 1.
      step: the number of steps done.
      key: a random key. It depends only on the seed, the step, the micro-batch, and the
        term's name, so that an image receives the same random numbers on any number of devices.
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
    ignore_label: int = dataclasses.field(default=255, metadata={"static": True})


def read_labels(inputs: Inputs) -> tuple[Int[Array, "B h w"], Bool[Array, "B h w"]]:
    """Returns the labels at the size of the map, and the mask of those that count.

    Raises:
      ValueError: if the batch has no labels.
    """
    if inputs.labels is None:
        raise ValueError("reads labels, and there are none")
    return inputs.labels, inputs.valid


def one_or_all(values: Sequence[Any] | None, names: Names | None) -> Any:
    """Returns one value for one name, a tuple for several names, and None for no name or value."""
    if names is None or values is None:
        return None
    return values[0] if isinstance(names, str) else tuple(values)


@dataclass_transform(kw_only_default=True, frozen_default=True)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """A term: a loss between maps of the student and of the teacher.

    Subclasses become frozen dataclasses. Their options are annotated fields with defaults. A field
    of type `Literal` accepts only its choices, and one of type `Annotated[float, Range]` only
    numbers in that range (`kdjax.utils.schema.Range`).

    Attributes:
      student: the name of the student's map, or several names.
      teacher: the name of the teacher's map, or as many names. None for a loss without a teacher.
      weight: the factor of the loss at the start of a run.
      schedule: how the weight changes during a run: "constant", or "linear" or "cosine" to
        `final_weight`.
      final_weight: the weight at the end.
      resize: the side whose map is resized, bilinearly, to the size of the other: "teacher" or
        "student". "none" keeps both sizes.
      adapter: when a 1x1 convolution maps the student's channels to the teacher's: "where_needed",
        "always", or "never". It is trained with the student, and exports leave it out.
      adapter_bias: True if the adapter has a bias.
      adapter_norm: True if a batch norm follows the adapter.
      learning_rate: the factor of the run's learning rate for the parameters of the term.
    """

    student: Names = "logits"
    teacher: Names | None = "logits"
    weight: Annotated[float, NOT_NEGATIVE] = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    resize: Literal["teacher", "student", "none"] = "teacher"
    adapter: Literal["where_needed", "always", "never"] = "where_needed"
    adapter_bias: bool = False
    adapter_norm: bool = False
    learning_rate: Annotated[float, NOT_NEGATIVE] = 1.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = inspect.get_annotations(cls)
        # An inherited field may get a new default without a type. The fields of `Loss` keep their
        # types, so that their values are always checked.
        for base in cls.__mro__[1:]:
            for name, kind in inspect.get_annotations(base).items():
                if name in cls.__dict__ and (name not in own or base is Loss):
                    own[name] = kind
        cls.__annotations__ = own
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def check(self, student: Any, teacher: Any) -> None:
        """Refuses maps on which the loss is not defined.

        Args:
          student: the `Spec` of the student's map after resizing and adapter, or a tuple of specs.
          teacher: the same for the teacher. None if the loss does not read the teacher.

        Raises:
          ValueError: if the loss is not defined. The message says what would be right.
        """

    def check_steps(self, steps: int) -> None:
        """Refuses a run that is too short, for losses that are 0 in their first steps.

        Args:
          steps: the number of steps of the whole run.

        Raises:
          ValueError: if the run is too short. The message says what would be right.
        """

    def init_params(self, key: PRNGKeyArray, student: Any, teacher: Any) -> PyTree:
        """Returns the parameters that the loss learns besides its adapter. None by default.

        The specs are those of `check`.
        """
        return {}

    def init_state(self, student: Any, teacher: Any) -> PyTree:
        """Returns the state that the loss keeps between steps. None by default.

        The specs are those of `check`.
        """
        return {}

    def update(self, state: PyTree, inputs: Inputs) -> PyTree:
        """Returns the state after this batch. It runs before `__call__` and receives no gradient.

        Parameters with an objective of their own, such as a discriminator's, belong to the state.
        This method trains them.
        """
        return state

    def __call__(
        self, inputs: Inputs, params: PyTree, state: PyTree
    ) -> Float[Array, ""] | tuple[Float[Array, ""], Metrics]:
        """Returns the value, or the value and further numbers to log by name."""
        raise TypeError(f"{type(self).__name__} has no __call__: it must return the loss's value")

    def weight_at(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the weight after a share of the run, 0 to 1."""
        start, end = self.weight, self.final_weight
        if self.schedule == "constant":
            return jnp.full_like(progress, start)
        if self.schedule == "linear":
            return start + (end - start) * progress
        return end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2

    def names(self, side: str) -> tuple[str, ...]:
        """Returns the names of the maps that the loss reads of "student" or "teacher"."""
        named = getattr(self, side)
        return () if named is None else (named,) if isinstance(named, str) else tuple(named)

    def is_adapted(self, student: Spec, teacher: Spec) -> bool:
        """Returns True if the student's map gets an adapter to the teacher's channels."""
        if self.adapter == "where_needed":
            return student.channels != teacher.channels
        return self.adapter == "always"

    def specs_as_read(self, student: Sequence[Spec], teacher: Sequence[Spec]) -> tuple[Any, Any]:
        """Returns the specs of the maps after resizing and adapter.

        Args:
          student: the specs of the student's maps that the loss names.
          teacher: the specs of the teacher's maps that the loss names.

        Returns:
          For each side a spec, or a tuple if the loss names several maps. None for a teacher that
          the loss does not read.
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
        return one_or_all(students, self.student), one_or_all(teachers, self.teacher)

    def describe(self) -> str:
        """Returns the loss, its maps, and its own options in one line."""
        options = ", ".join(
            f"{field.name} {getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name not in COMMON
        )
        maps = ", ".join("+".join(self.names(side)) for side in SIDES if self.names(side))
        return f"{type(self).__name__}({maps}{'; ' if options else ''}{options})"


COMMON = tuple(field.name for field in dataclasses.fields(Loss))


class ScoreLoss(Loss):
    """A loss that is defined only on class scores."""

    def check(self, student: Any, teacher: Any) -> None:
        """Requires one map of class scores on each side."""
        specs = (student,) if teacher is None else (student, teacher)
        if not all(isinstance(spec, Spec) and spec.scores for spec in specs):
            raise ValueError("needs class scores on both sides, as logits or aux_logits")


# Arguments of a function that are no options of a term. A step sets the first and compiles for the
# whole batch, so that the second keeps its default.
_NO_OPTIONS = ("ignore_label", "axis_name")
_POSITIONAL = (("student", "teacher"), ("student", "teacher", "labels"))


@functools.cache
def loss_class(
    target: Callable[..., Any] | type, *, mean_over: Literal["all", "labels"] = "all"
) -> type[Loss]:
    """Returns a loss class, and makes one if it gets a function.

    Args:
      target: a subclass of `Loss`, or a function `(student, teacher, *, ...)` or
        `(student, teacher, labels, *, ...)` of arrays. The keyword arguments become the fields.
      mean_over: the entries of the function's result whose mean is the loss: "all", or those of
        the pixels with a label.

    Raises:
      ValueError: if the target is neither.
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
    options = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in _NO_OPTIONS]
    ignores = any(p.name == "ignore_label" for p in parameters)
    if positional not in _POSITIONAL:
        raise ValueError(
            f"{name}({', '.join(positional)}) must take (student, teacher) or (student, teacher, "
            "labels), and its options by keyword alone, after a *"
        )
    if clash := [p.name for p in options if p.name in COMMON]:
        raise ValueError(f"{name} has an option called {clash[0]}, which every term has; rename it")

    def value(self: Loss, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        given = {option.name: getattr(self, option.name) for option in options}
        if ignores:
            given["ignore_label"] = inputs.ignore_label
        labels = (read_labels(inputs)[0],) if "labels" in positional else ()
        values = function(inputs.student, inputs.teacher, *labels, **given)
        return valid_mean(values, inputs.valid) if mean_over == "labels" else jnp.mean(values)

    defaults = {p.name: p.default for p in options if p.default is not p.empty}
    types = {p.name: Any if p.annotation is p.empty else p.annotation for p in options}
    return type(
        name,
        (Loss,),
        {
            "__annotations__": types,
            "__call__": value,
            "__doc__": target.__doc__,
            "__module__": target.__module__,
            **defaults,
        },
    )
