"""Terms that carry statistics of features: FAKD and ISDA, which augment them, OFD, and PHI-S."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics, Names, labelled, need_scores
from kdjax.distillation.maps import Classification, Spec
from kdjax.losses import ClassStatistics


class _Augmented(Loss):
    """What the losses share that augment the features behind the student's scores.

    They carry the statistics of these features in each class, and update them before they read
    them, as ISDA. The strength grows linearly from 0, likewise.
    """

    adapter: str = "never"
    strength: float = 1.0
    covariance: Literal["diagonal", "full"] = "diagonal"

    def check(self, student: Spec, teacher: Spec | None) -> None:
        need_scores(*(spec for spec in (student, teacher) if spec))
        if student.classified is None:
            raise ValueError(
                "augments the features behind the student's scores: the network must say how these "
                "were made, as a distillation.Classification among its maps"
            )
        if self.covariance not in ("diagonal", "full"):
            raise ValueError(f'covariance must be "diagonal" or "full", got "{self.covariance}"')
        # The loss sees the product with the progress, whose value is not known when it is traced.
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength must be zero or a positive number, got {self.strength}")

    def init_state(self, student: Spec, teacher: Spec | None) -> ClassStatistics:
        assert student.classified is not None  # check() saw it
        full = self.covariance == "full"
        return ClassStatistics.zeros(student.channels, student.classified, full=full)

    def update(self, state: ClassStatistics, inputs: Inputs) -> ClassStatistics:
        labels, _ = labelled(inputs)
        return state.update(_classifier(inputs).inputs, labels, inputs.ignore_label)

    def features(self, inputs: Inputs, state: ClassStatistics) -> dict[str, Any]:
        """The arguments that these losses share, of the functions in `kdjax.losses`."""
        classifier = _classifier(inputs)
        return {
            "kernel": classifier.kernel,
            "bias": classifier.bias,
            "labels": labelled(inputs)[0],
            "covariance": state.covariance,
            "strength": self.strength * inputs.progress,
            "ignore_label": inputs.ignore_label,
        }


class FAKDKL(_Augmented):
    """Feature-augmented per-pixel KL: Yuan et al. 2022, our reading. A mean over labels.

    The strength is not known; at ISDA's 7.5 the bound is far above the expectation
    (docs/methods/fakd.md).
    """

    temperature: float = 1.0
    bound: Literal["soft", "pairwise", "label", "student", "none"] = "soft"

    def __call__(self, inputs: Inputs, params: PyTree, state: ClassStatistics) -> Float[Array, ""]:
        values = losses.fakd_kl(
            _classifier(inputs).inputs,
            teacher_logits=inputs.teacher,
            temperature=self.temperature,
            bound=self.bound,
            **self.features(inputs, state),
        )
        return losses.valid_mean(values, inputs.valid)


class FAKDCWD(_Augmented):
    """Feature-augmented CWD: Yuan et al. 2022, our reading."""

    weight: float = 3.0
    temperature: float = 4.0

    def __call__(self, inputs: Inputs, params: PyTree, state: ClassStatistics) -> Float[Array, ""]:
        values = losses.fakd_cwd(
            _classifier(inputs).inputs,
            teacher_logits=inputs.teacher,
            temperature=self.temperature,
            **self.features(inputs, state),
        )
        return jnp.mean(values)


class ISDACrossEntropy(_Augmented):
    """ISDA's cross-entropy: Wang et al. 2019. Needs no teacher.

    It takes the place of the cross-entropy: set `config.loss.cross_entropy` to 0 beside it. The
    augmented scores are resized to the labels' size, as there.
    """

    teacher: Names | None = None
    strength: float = 7.5

    def __call__(self, inputs: Inputs, params: PyTree, state: ClassStatistics) -> Float[Array, ""]:
        features = self.features(inputs, state)
        logits = losses.isda_logits(_classifier(inputs).inputs, **features)
        labels, ignored = inputs.full_labels, inputs.ignore_label
        assert labels is not None  # features() saw them
        values = losses.upsampled_cross_entropy(logits, labels, ignore_label=ignored)
        return losses.valid_mean(values, labels != ignored)


def _classifier(inputs: Inputs) -> Classification:
    assert inputs.classifier is not None  # check() saw it
    return inputs.classifier


class Margin(NamedTuple):
    """The mean of what is below 0 in each channel of a map.

    Attributes:
      mean: [C], 0 where nothing was.
      seen: how many values it is of.
    """

    mean: Float[Array, " C"]
    seen: Float[Array, " C"]


class OFD(Loss):
    """A comprehensive overhaul of feature distillation: Heo et al. 2019.

    The targets are the teacher's maps before their ReLU, raised to a margin. If the target and the
    student are both below 0, and the student is not above the target, the loss is 0. The margin is
    the mean of a channel's negative values in all batches so far; maps after a ReLU have none.

    Attributes:
      alpha: Weight of the squared distance, summed over the pixels and channels of each map and
        averaged over images. It is the authors' constant, so that the loss grows with the maps as
        theirs does.
      divisors: What each map's part is divided by; the authors' for four stages and ASPP.
    """

    student: Names = ("stage1", "stage2", "stage3", "stage4", "head")
    teacher: Names | None = ("stage1", "stage2", "stage3", "stage4", "head")
    adapter: str = "always"
    adapter_norm: bool = True
    alpha: float = 1e-5
    divisors: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0, 1.0)

    def check(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> None:
        if not isinstance(student, tuple) or len(student) != len(self.divisors):
            raise ValueError(
                f"reads a map for each of its {len(self.divisors)} divisors: name as many, in a "
                "tuple"
            )
        if not 0 <= self.alpha < math.inf or min(self.divisors) <= 0:
            raise ValueError(
                "alpha must be zero or positive, and divisors positive; they are "
                f"{self.alpha} and {self.divisors}"
            )

    def init_state(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> dict[str, Margin]:
        named = zip(self.names("teacher"), teacher, strict=True)
        return {
            name: Margin(jnp.zeros(spec.channels), jnp.zeros(spec.channels)) for name, spec in named
        }

    def update(self, state: dict[str, Margin], inputs: Inputs) -> dict[str, Margin]:
        def with_map(margin: Margin, x: Float[Array, "B h w C"]) -> Margin:
            x = jnp.minimum(x.astype(jnp.float32), 0.0)
            below = jnp.sum(x < 0, (0, 1, 2)).astype(jnp.float32)
            seen = margin.seen + below
            moved = jnp.sum(x, (0, 1, 2)) - below * margin.mean
            return Margin(margin.mean + moved / jnp.maximum(seen, 1.0), seen)

        found = zip(self.names("teacher"), inputs.teacher, strict=True)
        return {name: with_map(state[name], x) for name, x in found}

    def __call__(
        self, inputs: Inputs, params: PyTree, state: dict[str, Margin]
    ) -> tuple[Float[Array, ""], Metrics]:
        apart, total = {}, jnp.zeros(())
        for divisor, name, mine, other in zip(
            self.divisors, self.names("teacher"), inputs.student, inputs.teacher, strict=True
        ):
            student = mine.astype(jnp.float32)
            teacher = jax.lax.stop_gradient(other).astype(jnp.float32)
            target = jnp.maximum(teacher, state[name].mean)
            counted = (student > target) | (target > 0)
            apart[name] = jnp.mean(jnp.where(counted, jnp.square(student - target), 0.0))
            total += self.alpha * math.prod(other.shape[1:]) / divisor * apart[name]
        return total, apart


class Standard(NamedTuple):
    """How a teacher's features are standardised: `(x - mean) * scale`, or `@ scale`.

    Attributes:
      statistics: of the features so far, as one class.
      mean: [D].
      scale: [D], or a matrix [D, D].
    """

    statistics: ClassStatistics
    mean: Float[Array, " D"]
    scale: Float[Array, "D"] | Float[Array, "D D"]


class StandardizedL2(Loss):
    """Squared distance from the teacher's features at a variance of 1: Ranzinger et al. 2024.

    In the first steps the loss is 0 and collects statistics of the teacher's features. After that,
    the features are standardized by these statistics. The weight is ours: values are about 1
    whatever the teacher.

    Attributes:
      standardize: "phi_s" rotates the features and scales all directions alike; "channel" scales
        each channel by itself.
      fitted_over: The number of steps that collect statistics. A run needs more steps than that.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    adapter: str = "always"
    standardize: Literal["phi_s", "channel"] = "phi_s"
    fitted_over: int = 50

    def check(self, student: Spec, teacher: Spec) -> None:
        if self.standardize not in ("phi_s", "channel"):
            raise ValueError(f'standardize must be "phi_s" or "channel", got "{self.standardize}"')
        if self.fitted_over < 1:
            raise ValueError(f"fitted_over must be 1 or more, got {self.fitted_over}")

    def check_steps(self, steps: int) -> None:
        if steps <= self.fitted_over:
            raise ValueError(
                f"is 0 in its first {self.fitted_over} steps (fitted_over), and the run has "
                f"{steps}; lower fitted_over or raise config.steps"
            )

    def init_state(self, student: Spec, teacher: Spec) -> Standard:
        whole, channels = self.standardize == "phi_s", teacher.channels
        statistics = ClassStatistics.zeros(1, channels, full=whole)
        scale = jnp.eye(channels) if whole else jnp.ones(channels)
        return Standard(statistics, jnp.zeros(channels), scale)

    def update(self, state: Standard, inputs: Inputs) -> Standard:
        def look(statistics: ClassStatistics) -> ClassStatistics:
            together = jnp.zeros(inputs.teacher.shape[:-1], jnp.int32)
            return statistics.update(inputs.teacher, together)

        def fit(statistics: ClassStatistics) -> Standard:
            covariance = statistics.covariance[0]
            if self.standardize == "phi_s":
                scale = losses.phi_s(covariance)
            else:
                scale = jnp.where(covariance > 0, covariance, 1.0) ** -0.5
            return Standard(statistics, statistics.mean[0], scale)

        looking = inputs.step < self.fitted_over
        statistics = jax.lax.cond(looking, look, lambda same: same, state.statistics)
        last = inputs.step == self.fitted_over - 1
        return jax.lax.cond(last, fit, lambda same: Standard(same, *state[1:]), statistics)

    def __call__(self, inputs: Inputs, params: PyTree, state: Standard) -> Float[Array, ""]:
        centred = jax.lax.stop_gradient(inputs.teacher).astype(jnp.float32) - state.mean
        if state.scale.ndim == 2:
            target = jnp.matmul(centred, state.scale, precision=jax.lax.Precision.HIGHEST)
        else:
            target = centred * state.scale
        value = jnp.mean(losses.l2(inputs.student, target))
        return jnp.where(inputs.step < self.fitted_over, 0.0, value)
