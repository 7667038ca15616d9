"""The losses that kdjax brings, as terms: what each reads, its options, and its weight.

Weights and options are those of the paper or of its authors' code. Where neither is known, that
stands beside them.
"""

import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics, Names, labelled, loss_class
from kdjax.distillation.maps import Classification, Spec
from kdjax.losses import ClassStatistics

# By the name that configs use.
LOSSES = {
    name: f"{__name__}:{attribute}"
    for name, attribute in {
        "cwd": "CWD",
        "pixelwise_kl": "PixelwiseKL",
        "l2": "L2",
        "nfd": "NFD",
        "pfs": "PFS",
        "gap_weighted_kl": "GapWeightedKL",
        "fakd_kl": "FAKDKL",
        "fakd_cwd": "FAKDCWD",
        "isda_cross_entropy": "ISDACrossEntropy",
        "skd_pairwise": "SKDPairwise",
    }.items()
}


class CWD(Loss):
    """Channel-wise distillation: Shu et al. 2021.

    The authors' main run: weight 3 and temperature 4 on the class scores. On features, after the
    pyramid, their weight is 50.
    """

    weight: float = 3.0
    temperature: float = 4.0

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return jnp.mean(losses.cwd(inputs.student, inputs.teacher, temperature=self.temperature))


class PixelwiseKL(Loss):
    """Hinton et al. 2015 at every pixel; weight 1 on the mean over the pixels, as CIRKD."""

    temperature: float = 1.0

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return jnp.mean(
            losses.pixelwise_kl(inputs.student, inputs.teacher, temperature=self.temperature)
        )


class L2(loss_class(losses.l2)):
    """Squared distance of features: Romero et al. 2015, the weight and the adapter of CIRKD."""

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 10.0
    adapter: str = "always"


class NFD(Loss):
    """Normalized feature distillation: Liu et al. 2022, our reading.

    The weight is not known; peers give a plain distance 1 to 10.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 3.0
    axes: Literal["space", "batch_space", "channel", "all"] = "space"
    eps: float = 1e-5

    def __call__(
        self, inputs: Inputs, params: PyTree, state: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        options = {"axes": self.axes, "eps": self.eps}
        # The share of the channels that do not vary, in each network.
        dead = {
            f"dead_{side}_channels": jnp.mean(losses.dead_channels(features, **options))
            for side, features in (("student", inputs.student), ("teacher", inputs.teacher))
        }
        return jnp.mean(losses.nfd(inputs.student, inputs.teacher, **options)), dead


class PFS(Loss):
    """Pixel-wise feature similarities: Shan 2019, our reading.

    The weight is not known; CIRKD gives SKD's table 10.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 10.0
    adapter: str = "never"
    similarity: Literal["cosine", "softmax"] = "cosine"
    temperature: float = 1.0

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return jnp.mean(
            losses.pfs(
                inputs.student,
                inputs.teacher,
                similarity=self.similarity,
                temperature=self.temperature,
            )
        )


class SKDPairwise(Loss):
    """Pair-wise similarities of regions: Liu et al. 2019, the weight of the authors' script.

    A window of 0 is their half of the map.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 0.5
    adapter: str = "never"
    window: int = 0

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return jnp.mean(
            losses.skd_pairwise(inputs.student, inputs.teacher, window=self.window or None)
        )


class GapWeightedKL(Loss):
    """Soft targets where the teacher knows more: Shan 2019, our reading. A mean over labels."""

    adapter: str = "never"
    temperature: float = 1.0
    gap: Literal["probability", "cross_entropy", "total_variation"] = "probability"

    def check(self, student: Spec, teacher: Spec) -> None:
        _need_scores(student, teacher)

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        labels, valid = labelled(inputs)
        values = losses.gap_weighted_kl(
            inputs.student,
            inputs.teacher,
            labels,
            temperature=self.temperature,
            gap=self.gap,
            ignore_label=inputs.ignore_label,
        )
        return losses.valid_mean(values, valid)


class _Augmented(Loss):
    """What the losses share that augment the features behind the student's scores.

    They carry the statistics of these features in each class, and update them before they read
    them, as ISDA. The strength grows linearly from 0, likewise.
    """

    adapter: str = "never"
    strength: float = 1.0
    covariance: Literal["diagonal", "full"] = "diagonal"

    def check(self, student: Spec, teacher: Spec | None) -> None:
        _need_scores(*(spec for spec in (student, teacher) if spec))
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


def _need_scores(*specs: Spec) -> None:
    if not all(spec.scores for spec in specs):
        raise ValueError("needs class scores on both sides, as logits or aux_logits")
