"""FAKD and ISDA as terms: losses under augmented features, which carry their statistics."""

import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Names, labelled, need_scores
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
