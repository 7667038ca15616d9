"""The optimizer: SGD or AdamW, poly decay, weight decay, clipping, a faster head."""

from typing import Any

import jax
import optax

from kdjax.errors import UserError
from kdjax.suggest import nearest

OPTIMIZERS = ("sgd", "adamw")
# Path parts of what is trained from scratch on top of a backbone.
HEADS = ("head", "auxiliary_head", "terms")

# What is no kernel in spite of its shape: biases of positions in Swin, as mmsegmentation's configs
# have them, and in own networks its other embeddings, and biases of several heads.
UNDECAYED = (
    "relative_position_bias_table",
    "absolute_pos_embed",
    "pos_embed",
    "cls_token",
    "bias",
)


def learning_rate_schedule(config: Any, steps: int) -> optax.Schedule:
    """The learning rate of `config.optimizer`, by step.

    Poly decay `(start - end) * (1 - step / steps)^power + end`, times a linear warm-up.
    """
    poly = optax.polynomial_schedule(
        config.learning_rate, config.min_learning_rate, config.poly_power, steps
    )
    if not config.warmup_steps:
        return poly
    # The decay counts from step 0; mmsegmentation's from the end of the warm-up.
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    return lambda step: warmup(step) * poly(step)


def make_optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """Builds the gradient transformation of `config.optimizer` for a run of `steps`.

    SGD's weight decay is added to the gradient before the momentum, as in PyTorch; AdamW's is
    decoupled.

    Raises:
      UserError: for a name that is none of `OPTIMIZERS`.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f'unknown optimizer "{config.name}": {nearest(config.name, OPTIMIZERS)}')
    decay = optax.add_decayed_weights(
        config.weight_decay, None if config.decay_norm_and_bias else _is_kernel
    )
    parts = []
    if config.gradient_clip:
        parts.append(optax.clip_by_global_norm(config.gradient_clip))
    if config.name == "sgd":
        parts += [decay, optax.trace(config.momentum)]
    else:
        parts += [optax.scale_by_adam(), decay]
    if config.head_multiplier != 1.0:
        parts.append(optax.masked(optax.scale(config.head_multiplier), _is_head))
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(config, steps)))
    return optax.chain(*parts)


def _is_kernel(params: Any) -> Any:
    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim > 1 and not any(getattr(part, "key", None) in UNDECAYED for part in path)

    return jax.tree_util.tree_map_with_path(decays, params)


def _is_head(params: Any) -> Any:
    def in_head(path: tuple[Any, ...], _: Any) -> bool:
        return any(getattr(part, "key", None) in HEADS for part in path)

    return jax.tree_util.tree_map_with_path(in_head, params)
