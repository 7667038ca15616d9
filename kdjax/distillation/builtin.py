"""The losses that kdjax brings, as terms: what each reads, its options, and its weight.

Weights and options are those of the paper or of its authors' code. Where neither is known, that
stands beside them.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics, Names, labelled, loss_class, need_scores
from kdjax.distillation.maps import Spec

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
        "skd_pairwise": "SKDPairwise",
        "attention_transfer": "AttentionTransfer",
        "pkd": "PKD",
        "dsd_pairs": "DSDPairs",
        "cirkd_minibatch": "CIRKDMinibatch",
        "ifvd": "IFVD",
        "dist_inter": "DISTInter",
        "dist_intra": "DISTIntra",
        "dkd": "DKD",
        "wsld": "WSLD",
        "bpkd": "BPKD",
        "jml": "JML",
    }.items()
} | {
    "fakd_kl": "kdjax.distillation.augmented:FAKDKL",
    "fakd_cwd": "kdjax.distillation.augmented:FAKDCWD",
    "isda_cross_entropy": "kdjax.distillation.augmented:ISDACrossEntropy",
    "ofd": "kdjax.distillation.augmented:OFD",
    "standardized_l2": "kdjax.distillation.augmented:StandardizedL2",
    "attn_fd": "kdjax.distillation.learned:AttnFD",
    "mgd": "kdjax.distillation.learned:MGD",
    "af_dcd": "kdjax.distillation.learned:AfDCD",
    "cirkd_memory": "kdjax.distillation.memory:CIRKDMemory",
    "holistic": "kdjax.distillation.second_optimizer:Holistic",
    "mas_kd": "kdjax.distillation.second_optimizer:MasKD",
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

    Attributes:
      window: Rows and columns of a region; 0 is half the map, as in the authors' code.
      stop_norms: Whether the gradient treats the regions' norms as constants, as the authors' code
        does. CIRKD's code does not.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 0.5
    adapter: str = "never"
    window: int = 0
    stop_norms: bool = True

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return jnp.mean(
            losses.skd_pairwise(
                inputs.student,
                inputs.teacher,
                window=self.window or None,
                stop_norms=self.stop_norms,
            )
        )


class GapWeightedKL(Loss):
    """Soft targets where the teacher knows more: Shan 2019, our reading. A mean over labels."""

    adapter: str = "never"
    temperature: float = 1.0
    gap: Literal["probability", "cross_entropy", "total_variation"] = "probability"

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)

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


class AttentionTransfer(loss_class(losses.attention_transfer)):
    """Where features respond: Zagoruyko and Komodakis 2017.

    CIRKD's weight, 10000 on a mean over 64 x 128 pixels.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 1.2
    adapter: str = "never"


class PKD(loss_class(losses.pkd)):
    """Correlation of features over the batch: Cao et al. 2022, the weight of their detectors."""

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 6.0


class DSDPairs(loss_class(losses.dsd_pairs)):
    """How attention moves between maps: Feng et al. 2021, as CIRKD runs it.

    CIRKD's weight, 1000 on a mean over 64 x 128 pixels.
    """

    student: Names = ("aux_logits", "head", "logits")
    teacher: Names | None = ("aux_logits", "head", "logits")
    weight: float = 0.12
    adapter: str = "never"


class CIRKDMinibatch(loss_class(losses.cirkd_minibatch)):
    """Similarities of pixels across images: Yang et al. 2022, the first part of their method."""

    student: Names = "head"
    teacher: Names | None = "head"
    adapter: str = "never"


class IFVD(loss_class(losses.ifvd)):
    """Likeness to the class's centre: Wang et al. 2020, CIRKD's weight.

    The mean is over all pixels, with those that are not labelled, as the authors'.
    """

    student: Names = "head"
    teacher: Names | None = "head"
    weight: float = 20.0
    adapter: str = "never"


class DISTInter(loss_class(losses.dist_inter)):
    """Correlation of a pixel's classes: Huang et al. 2022."""

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)


class DISTIntra(loss_class(losses.dist_intra)):
    """Correlation of a class's pixels: Huang et al. 2022."""

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)


class DKD(Loss):
    """KL divergence in two parts: Zhao et al. 2022, as on ImageNet. A mean over labels."""

    adapter: str = "never"
    alpha: float = 1.0
    beta: float = 0.5
    temperature: float = 1.0

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        labels, valid = labelled(inputs)
        values = losses.dkd(
            inputs.student,
            inputs.teacher,
            labels,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            ignore_label=inputs.ignore_label,
        )
        return losses.valid_mean(values, valid)


class WSLD(Loss):
    """Soft targets by the ratio of losses: Zhou et al. 2021. A mean over labels."""

    weight: float = 2.5
    adapter: str = "never"
    temperature: float = 2.0

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        labels, valid = labelled(inputs)
        values = losses.wsld(
            inputs.student,
            inputs.teacher,
            labels,
            temperature=self.temperature,
            ignore_label=inputs.ignore_label,
        )
        return losses.valid_mean(values, valid)


class BPKD(Loss):
    """Edges apart from bodies: Liu et al. 2024, our reading, with the weight of the bodies.

    That of `part="edge"` is 100.
    """

    weight: float = 20.0
    adapter: str = "never"
    part: Literal["body", "edge"] = "body"
    window: int = 7
    temperature: float = 1.0

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        labelled(inputs)
        assert inputs.full_labels is not None  # labelled() saw them
        return jnp.mean(
            losses.bpkd(
                inputs.student,
                inputs.teacher,
                inputs.full_labels,
                part=self.part,
                window=self.window,
                temperature=self.temperature,
                ignore_label=inputs.ignore_label,
            )
        )


class JML(loss_class(losses.jml)):
    """Overlap of classes: Wang et al. 2023. The weight belongs to a cross-entropy of weight 1."""

    weight: float = 6.0
    adapter: str = "never"

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)
