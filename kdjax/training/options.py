"""The sections of a config on training: optimizer, cross-entropies, and mesh of devices."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from kdjax import sections
from kdjax.sections import Section, WrongValue


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Section):
    """`config.optimizer`: how parameters are updated."""

    # "sgd", "adamw", or "package.module:factory" of one that takes learning_rate, as "optax:lion".
    name: str = "sgd"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of it
    learning_rate: Annotated[float, sections.POSITIVE] = 0.01
    # "poly", or "package.module:factory" of a function from step to rate, called with learning_rate
    # and steps, or what Optax calls them, as "optax:cosine_decay_schedule".
    schedule: str = "poly"
    # Further arguments of it.
    schedule_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    min_learning_rate: Annotated[float, sections.NOT_NEGATIVE] = 0.0  # of poly
    poly_power: Annotated[float, sections.NOT_NEGATIVE] = 0.9  # of poly
    warmup_steps: Annotated[int, sections.COUNT_OR_ZERO] = 0  # linear, of every schedule
    # Of sgd, and of others that have no default for it.
    momentum: Annotated[float, sections.SHARE_BELOW_ONE] = 0.9
    weight_decay: Annotated[float, sections.NOT_NEGATIVE] = 5e-4  # of optimizers that take it
    decay_norm_and_bias: bool = True  # as PyTorch's SGD does; else kernels alone
    # Regular expressions on the paths of parameters, as "student/backbone/stem/conv/kernel" or
    # "terms/cwd/adapter/0/kernel": which do not decay,
    no_decay: tuple[str, ...] = ()
    # and (expression, multiplier) of the learning rate; 0 keeps parameters as they are.
    rates: tuple[tuple[str, float], ...] = ()
    head_multiplier: Annotated[float, sections.POSITIVE] = 1.0  # the same of heads and adapters
    gradient_clip: Annotated[float, sections.NOT_NEGATIVE] = 0.0  # global norm; 0 for none
    # Micro-batches per step. Their gradients count alike, each that of its own mean over labelled
    # pixels: where some have more ignored pixels, these count less than in one large batch.
    accumulate: Annotated[int, sections.COUNT] = 1
    ema_decay: Annotated[float, sections.SHARE_BELOW_ONE] = 0.0  # 0 for no moving average

    def __post_init__(self) -> None:
        """Checks also the regular expressions."""
        super().__post_init__()
        for expression in self.no_decay:
            sections.check_expression("no_decay", expression)
        for pair in self.rates:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise WrongValue(
                    "rates", f'holds {pair!r}; it must hold pairs, as (("/head/", 10.0),)'
                )
            sections.check_expression("rates", pair[0])
            sections.check_number("rates", pair[1], sections.NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class LossOptions(Section):
    """`config.loss`: the cross-entropies with the labels."""

    cross_entropy: Annotated[float, sections.NOT_NEGATIVE] = 1.0  # its weight
    auxiliary: Annotated[float, sections.NOT_NEGATIVE] = 0.4  # that of the auxiliary head's
    # The pixels over which both are averaged: "labelled", or "all", where ignored ones count as 0,
    # as mmsegmentation does.
    mean_over: Literal["labelled", "all"] = "labelled"


@dataclasses.dataclass(frozen=True)
class MeshOptions(Section):
    """`config.mesh`: devices along each axis; -1 for all that remain."""

    data: Annotated[int, sections.DEVICES] = -1  # images of a batch
    fsdp: Annotated[int, sections.DEVICES] = 1  # images, and weights and optimizer state with them
    space: Annotated[int, sections.DEVICES] = 1  # rows of each image
