"""ISDA as a term, and the base class of losses that augment features."""

from typing import Annotated, Any, Literal

from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.feature_maps import Classification, Spec
from kdjax.distillation.loss import Inputs, ScoreLoss, read_labels
from kdjax.losses import ClassStatistics
from kdjax.utils.schema import NOT_NEGATIVE


class FeatureAugmented(ScoreLoss):
    """A loss that augments the features from which the student's scores are made.

    Its state holds the statistics of these features in each class. As in ISDA, they are updated
    before the loss reads them, and the strength grows linearly from 0.
    """

    adapter = "never"
    # The functions cannot check the strength, because its product with the progress is traced.
    strength: Annotated[float, NOT_NEGATIVE] = 1.0
    covariance: Literal["diagonal", "full"] = "diagonal"

    def check(self, student: Spec, teacher: Spec | None) -> None:
        super().check(student, teacher)
        if student.classified is None:
            raise ValueError(
                "augments the features behind the student's scores: the network must say how these "
                "were made, as a distillation.Classification among its maps"
            )

    def init_state(self, student: Spec, teacher: Spec | None) -> ClassStatistics:
        assert student.classified is not None  # checked above
        full = self.covariance == "full"
        return ClassStatistics.zeros(student.channels, student.classified, full=full)

    def update(self, state: ClassStatistics, inputs: Inputs) -> ClassStatistics:
        labels, _ = read_labels(inputs)
        return state.update(_classifier(inputs).inputs, labels, inputs.ignore_label)

    def arguments(self, inputs: Inputs, state: ClassStatistics) -> tuple[Array, dict[str, Any]]:
        """Returns the features, and the arguments that all functions of such losses share."""
        classifier = _classifier(inputs)
        return classifier.inputs, {
            "kernel": classifier.kernel,
            "bias": classifier.bias,
            "labels": read_labels(inputs)[0],
            "covariance": state.covariance,
            "strength": self.strength * inputs.progress,
            "ignore_label": inputs.ignore_label,
        }


class ISDACrossEntropy(FeatureAugmented):
    """ISDA's cross-entropy: Wang et al. 2019. It needs no teacher.

    It replaces the plain cross-entropy: set `config.loss.cross_entropy` to 0. The augmented scores
    are resized to the size of the labels, as the plain scores are.
    """

    teacher = None
    strength = 7.5

    def __call__(self, inputs: Inputs, params: PyTree, state: ClassStatistics) -> Float[Array, ""]:
        features, arguments = self.arguments(inputs, state)
        logits = losses.isda_logits(features, **arguments)
        labels, ignored = inputs.full_labels, inputs.ignore_label
        assert labels is not None  # arguments() has read them
        values = losses.upsampled_cross_entropy(logits, labels, ignore_label=ignored)
        return losses.valid_mean(values, labels != ignored)


def _classifier(inputs: Inputs) -> Classification:
    assert inputs.classifier is not None  # check() requires it
    return inputs.classifier
