"""Losses between class scores and labels, with options for rare classes."""

import dataclasses
from typing import Annotated, Any, Literal, cast

import jax.numpy as jnp
import optax.losses
from jaxtyping import Array, Float, Int

from kdjax import losses
from kdjax.utils import schema
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import WrongValue
from kdjax.utils.schema import Section

# The pixels over which a cross-entropy is averaged; see `LossOptions`.
MeanOver = Literal["labelled", "all"]


@dataclasses.dataclass(frozen=True)
class RareClassOptions(Section):
    """The keys of `config.loss` for rare classes. docs/rare_classes.md has examples."""

    # The weight of each class in both cross-entropies, in the order of the classes. () weights all
    # pixels equally.
    class_weights: Annotated[tuple[float, ...], schema.NOT_NEGATIVE] = ()
    # "given" takes class_weights. The others compute weights from the pixels of each class in the
    # training images.
    class_weighting: Literal["given", "inverse_frequency", "median_frequency"] = "given"
    # The exponent of the focal loss in both cross-entropies; 0 for none.
    focal_gamma: Annotated[float, schema.NOT_NEGATIVE] = 0.0
    # Online hard example mining: both cross-entropies are averaged over this share of the labeled
    # pixels, those with the largest values,
    hard_share: Annotated[float, schema.SHARE_ABOVE_ZERO] = 1.0
    # and over all pixels whose label has a lower probability than this.
    hard_below: Annotated[float, schema.SHARE] = 0.0
    dice: Annotated[float, schema.NOT_NEGATIVE] = 0.0  # weight of the Dice loss
    lovasz: Annotated[float, schema.NOT_NEGATIVE] = 0.0  # weight of the Lovász-softmax loss

    def __post_init__(self) -> None:
        """Checks keys that depend on each other too."""
        super().__post_init__()
        if self.class_weights and self.class_weighting != "given":
            raise WrongValue(
                "class_weights",
                f"are given, and class_weighting is {self.class_weighting}; set one of the two",
            )
        if self.class_weights and not any(self.class_weights):
            raise WrongValue("class_weights", "are all 0; one must be positive")
        if self.hard_below and self.hard_share == 1:
            raise WrongValue(
                "hard_below", "changes nothing while hard_share is 1.0; set hard_share to 0.05"
            )


@dataclasses.dataclass(frozen=True)
class LossOptions(RareClassOptions):
    """`config.loss`: the losses with the labels."""

    cross_entropy: Annotated[float, schema.NOT_NEGATIVE] = 1.0  # weight of the cross-entropy
    auxiliary: Annotated[float, schema.NOT_NEGATIVE] = 0.4  # weight of the auxiliary head's
    # The pixels over which both are averaged: "labelled"; or "all", with 0 for ignored pixels, as
    # in mmsegmentation.
    mean_over: MeanOver = "labelled"

    @property
    def reads_scores(self) -> bool:
        """True if a loss reads the student's class scores."""
        return any((self.cross_entropy, self.dice, self.lovasz))


def mean_cross_entropy(
    scores: Float[Array, "B h w K"],
    labels: Int[Array, "B H W"],
    options: RareClassOptions,
    mean_over: MeanOver,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy at the size of the labels.

    With class weights, the sum is divided by the weights of its pixels, as in PyTorch.

    Args:
      scores: class scores of any size.
      labels: train ids; 255 is ignored.
      options: the options for rare classes.
      mean_over: "labelled" or "all" pixels.
    """
    values = losses.upsampled_cross_entropy(scores, labels, ignore_label=IGNORE_LABEL)
    valid = counted = labels != IGNORE_LABEL
    if options.hard_share < 1:
        counted = losses.hard_pixels(
            values, valid, share=options.hard_share, below=options.hard_below
        )
    if options.focal_gamma:
        values = losses.focal(values, options.focal_gamma)
    if options.class_weights:
        weights = jnp.asarray(options.class_weights, jnp.float32)[jnp.where(valid, labels, 0)]
        weights = jnp.where(counted, weights, 0.0)
        divisor = jnp.sum(weights) + (jnp.sum(~valid) if mean_over == "all" else 0)
        # A batch may hold no pixel of a class with a weight.
        return jnp.sum(weights * values) / jnp.where(divisor > 0, divisor, 1.0)
    if mean_over == "all":
        if options.hard_share < 1:
            return losses.valid_mean(values, counted | ~valid)
        return jnp.mean(values)
    return losses.valid_mean(values, counted)


def overlap_losses(
    scores: Float[Array, "B h w K"], labels: Int[Array, "B H W"], options: RareClassOptions
) -> dict[str, tuple[float, Float[Array, ""]]]:
    """Returns weight and value of the Dice and the Lovász-softmax loss, if they have a weight.

    Args:
      scores: class scores of any size, which are resized to that of the labels.
      labels: train ids; 255 is ignored.
      options: the options for rare classes.
    """
    found = {}
    if options.dice or options.lovasz:
        scores = losses.resize(scores.astype(jnp.float32), labels.shape[-2:])
    if options.dice:
        found["dice"] = options.dice, _dice(scores, labels)
    if options.lovasz:
        found["lovasz"] = (
            options.lovasz,
            jnp.mean(losses.lovasz_softmax(scores, labels, ignore_label=IGNORE_LABEL)),
        )
    return found


def _dice(scores: Float[Array, "B H W K"], labels: Int[Array, "B H W"]) -> Float[Array, ""]:
    """Returns the mean Dice loss of the classes that occur in the labels of the batch."""
    classes = scores.shape[-1]
    valid = (labels != IGNORE_LABEL)[..., None]
    # Optax has no ignored pixels, so they get a class of their own, and a probability of 1 for it.
    impossible = jnp.finfo(jnp.float32).min
    scores = jnp.concatenate(
        [jnp.where(valid, scores, impossible), jnp.where(valid, impossible, 0.0)], axis=-1
    )
    targets = jnp.where(valid[..., 0], labels, classes)[..., None] == jnp.arange(classes + 1)
    values = optax.losses.dice_loss(
        scores,
        targets.astype(jnp.float32),
        reduction="none",
        axis=cast(Any, (0, 1, 2)),  # Optax's annotation forgets tuples
    )[:classes]
    return losses.valid_mean(values, jnp.any(targets, axis=(0, 1, 2))[:classes])
