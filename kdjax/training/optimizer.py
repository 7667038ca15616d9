"""The optimizer and its learning rate, by name; which parameters decay, and which learn faster."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from kdjax.utils import imports, schema
from kdjax.utils.errors import WrongValue
from kdjax.utils.schema import Section


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Section):
    """`config.optimizer`: how parameters are updated."""

    # "sgd", "adamw", or "package.module:factory" of one that takes learning_rate, as "optax:lion".
    name: str = "sgd"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of it
    learning_rate: Annotated[float, schema.POSITIVE] = 0.01
    # "poly", or "package.module:factory" of a function from step to rate, called with learning_rate
    # and steps, or what Optax calls them, as "optax:cosine_decay_schedule".
    schedule: str = "poly"
    # Further arguments of it.
    schedule_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    min_learning_rate: Annotated[float, schema.NOT_NEGATIVE] = 0.0  # of poly
    poly_power: Annotated[float, schema.NOT_NEGATIVE] = 0.9  # of poly
    warmup_steps: Annotated[int, schema.COUNT_OR_ZERO] = 0  # linear, of every schedule
    # Of sgd, and of others that have no default for it.
    momentum: Annotated[float, schema.SHARE_BELOW_ONE] = 0.9
    weight_decay: Annotated[float, schema.NOT_NEGATIVE] = 5e-4  # of optimizers that take it
    decay_norm_and_bias: bool = True  # as PyTorch's SGD does; else kernels alone
    # Regular expressions on the paths of parameters, as "student/backbone/stem/conv/kernel" or
    # "terms/cwd/adapter/0/kernel": which do not decay,
    no_decay: tuple[str, ...] = ()
    # and (expression, multiplier) of the learning rate; 0 keeps parameters as they are.
    rates: tuple[tuple[str, float], ...] = ()
    head_multiplier: Annotated[float, schema.POSITIVE] = 1.0  # the same of heads and adapters
    gradient_clip: Annotated[float, schema.NOT_NEGATIVE] = 0.0  # global norm; 0 for none
    # Micro-batches per step. Their gradients count alike, each that of its own mean over labelled
    # pixels: where some have more ignored pixels, these count less than in one large batch.
    accumulate: Annotated[int, schema.COUNT] = 1
    ema_decay: Annotated[float, schema.SHARE_BELOW_ONE] = 0.0  # 0 for no moving average

    def __post_init__(self) -> None:
        """Checks also the regular expressions."""
        super().__post_init__()
        for expression in self.no_decay:
            schema.check_expression("no_decay", expression)
        for pair in self.rates:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise WrongValue(
                    "rates", f'holds {pair!r}; it must hold pairs, as (("/head/", 10.0),)'
                )
            schema.check_expression("rates", pair[0])
            schema.check_number("rates", pair[1], schema.NOT_NEGATIVE)


_SHOWN = 5  # paths in a message


def map_with_paths(function: Callable[[str, Any], Any], params: PyTree) -> PyTree:
    """`function(path, leaf)` of every leaf; a path is as "student/backbone/stem/conv/kernel"."""
    path_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(path_of(keys), leaf), params
    )


def require_matches(key: str, patterns: Iterable[str], params: PyTree) -> None:
    """Requires every pattern to be found in the path of a parameter.

    Args:
      key: of the config, which holds the patterns.
      patterns: regular expressions.
      params: what is trained.

    Raises:
      UserError: naming the pattern that is not, and a few paths.
    """
    paths = jax.tree.leaves(map_with_paths(lambda path, _: path, params))
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            # From all over the network, since neighbours are alike.
            shown = paths[:: -(-len(paths) // _SHOWN)] if paths else []
            raise WrongValue(
                key,
                f'has "{pattern}", which is found in no path of the {len(paths)} parameters, as '
                f"{', '.join(shown)}",
            )


OPTIMIZERS: Mapping[str, str] = MappingProxyType(
    {"sgd": "kdjax.training.optimizer:sgd", "adamw": "optax:adamw"}
)
SCHEDULES: Mapping[str, str] = MappingProxyType({"poly": "kdjax.training.optimizer:poly"})

# What is trained from scratch on top of a backbone.
HEADS = r"(^|/)(head|auxiliary_head|terms)(/|$)"

# What is no kernel in spite of its shape: biases of positions in Swin, as mmsegmentation's configs
# have them, and in own networks its other embeddings, and biases of several heads.
UNDECAYED = r"(^|/)(relative_position_bias_table|absolute_pos_embed|pos_embed|cls_token|bias)(/|$)"


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    mask: Any = None,
    nesterov: bool = False,
    accumulator_dtype: str | None = None,
) -> optax.GradientTransformation:
    """SGD as in PyTorch: weight decay is added to the gradient before the momentum.

    Args:
      learning_rate: by step.
      momentum: share of the sum of gradients that is kept.
      weight_decay: how much of a parameter is added to its gradient.
      mask: of the parameters that decay, as `optax.add_decayed_weights` takes it.
      nesterov: whether the gradient looks ahead.
      accumulator_dtype: of the sum of gradients; None for that of the parameters.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(momentum, nesterov, accumulator_dtype),
        optax.scale_by_learning_rate(learning_rate),
    )


def poly(
    *, learning_rate: float, steps: int, min_learning_rate: float, poly_power: float
) -> optax.Schedule:
    """Poly decay: `(start - end) * (1 - step / steps)^power + end`."""
    return optax.polynomial_schedule(learning_rate, min_learning_rate, poly_power, steps)


class _Kind(NamedTuple):
    """What a name of `config.optimizer` stands for."""

    what: str  # in words
    key: str  # that holds the name
    options: str  # the key that holds further arguments
    builtin: Mapping[str, str]  # those that have a name without a colon
    made: str  # what a factory returns, in words
    is_made: Callable[[Any], bool]


_OPTIMIZER = _Kind(
    "optimizer",
    "name",
    "options",
    OPTIMIZERS,
    "optax.GradientTransformation",
    lambda made: hasattr(made, "init") and hasattr(made, "update"),
)
_SCHEDULE = _Kind(
    "schedule", "schedule", "schedule_options", SCHEDULES, "function from step to rate", callable
)

# What Optax calls what kdjax gives: the first of the names that a factory has an argument of.
_RATE = ("learning_rate", "peak_value", "init_value", "value")
_STEPS = ("steps", "decay_steps", "transition_steps")
_MASK = ("mask", "weight_decay_mask")


def learning_rate_schedule(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """The learning rate of `config.optimizer`, by step.

    A factory, as `poly` or `optax.cosine_decay_schedule`, is called by keyword with
    `options.schedule_options`. Where it has arguments of these names and the options do not set
    them, it gets `learning_rate` (Optax's `peak_value`, `init_value` or `value`) and `steps`
    (`decay_steps`, `transition_steps`); where it has no defaults for them, `min_learning_rate` and
    `poly_power`. A linear warm-up over `options.warmup_steps` multiplies what it returns.

    Args:
      options: the section `config.optimizer`.
      steps: of the run.

    Raises:
      UserError: for an unknown schedule, and options that it does not take.
    """
    schedule = _made(_SCHEDULE, options, _schedule_arguments(options, steps))
    if not options.warmup_steps:
        return schedule
    # The decay counts from step 0; mmsegmentation's from the end of the warm-up.
    warmup = optax.linear_schedule(0.0, 1.0, options.warmup_steps)
    return lambda step: warmup(step) * schedule(step)


def make_optimizer(options: OptimizerOptions, steps: int) -> optax.GradientTransformation:
    """Builds the gradient transformation of `config.optimizer` for a run of `steps`.

    A factory, as `sgd` or `optax.lion`, is called by keyword with `options.options`, the schedule
    as its `learning_rate`, and, where it has arguments of these names and the options do not set
    them, `weight_decay` and the `mask` (`weight_decay_mask`) of what decays; `momentum` where it
    has no default for it. Gradients are clipped before, and updates multiplied by the rates of
    their parameters after.

    Args:
      options: the section `config.optimizer`.
      steps: of the run.

    Raises:
      UserError: for an unknown optimizer or schedule, and options that they do not take; on `init`,
        for a pattern that is found in no path of a parameter.
    """
    schedule = learning_rate_schedule(options, steps)
    transformation = _made(_OPTIMIZER, options, _optimizer_arguments(options, schedule))
    parts = []
    if options.gradient_clip:
        parts.append(optax.clip_by_global_norm(options.gradient_clip))
    return optax.chain(*parts, transformation, _at_own_rates(options))


def check_optimizer(options: OptimizerOptions) -> frozenset[str]:
    """Finds the mistakes in `config.optimizer` that can be found before there are parameters.

    Imports what it names, and calls nothing.

    Returns:
      Which of "learning_rate" and "weight_decay" the optimizer and the schedule take.

    Raises:
      UserError: as `learning_rate_schedule` and `make_optimizer`.
    """
    rate = _schedule_arguments(options, 1)
    given = _optimizer_arguments(options, None)
    taken = [key for key in _RATE if key in rate and key not in options.schedule_options]
    read = {"learning_rate"} if taken else set()
    if "weight_decay" in given and "weight_decay" not in options.options:
        read.add("weight_decay")
    return frozenset(read)


def depends_on_steps(options: OptimizerOptions) -> bool:
    """Returns True if the learning rate of a step depends on the number of steps of the run."""
    return _schedule_arguments(options, 1) != _schedule_arguments(options, 2)


def _schedule_arguments(options: OptimizerOptions, steps: int) -> dict[str, Any]:
    return _arguments(
        _SCHEDULE,
        options,
        {_RATE: options.learning_rate, _STEPS: steps},
        {"min_learning_rate": options.min_learning_rate, "poly_power": options.poly_power},
    )


def _optimizer_arguments(
    options: OptimizerOptions, schedule: optax.Schedule | None
) -> dict[str, Any]:
    decayed = _decayed(options)
    offered: dict[tuple[str, ...], Any] = {
        ("learning_rate",): schedule,
        ("weight_decay",): options.weight_decay,
    }
    if decayed is not None:
        offered[_MASK] = decayed
    given = _arguments(_OPTIMIZER, options, offered, {"momentum": options.momentum})
    if "learning_rate" not in given:
        raise _wrong(_OPTIMIZER, options, "which takes no learning_rate")
    if decayed is not None and "weight_decay" in given and not set(_MASK) & set(given):
        key = "decay_norm_and_bias" if not options.decay_norm_and_bias else "no_decay"
        raise WrongValue(
            f"config.optimizer.{key}",
            f"keeps parameters from decaying, for which {options.name} takes no mask; leave it "
            "out, or set config.optimizer.weight_decay by parameter in a factory of your own",
        )
    return given


def _arguments(
    kind: _Kind,
    options: OptimizerOptions,
    offered: Mapping[tuple[str, ...], Any],
    if_required: Mapping[str, Any],
) -> dict[str, Any]:
    """What a factory is called with, as `imports.arguments` finds it."""
    return imports.arguments(
        kind.what,
        getattr(options, kind.key),
        _factory(kind, options),
        getattr(options, kind.options),
        offered,
        if_required,
        key=f"config.optimizer.{kind.key}",
        options_key=f"config.optimizer.{kind.options}",
    )


def _made(kind: _Kind, options: OptimizerOptions, arguments: Mapping[str, Any]) -> Any:
    try:
        made = _factory(kind, options)(**arguments)
    except (TypeError, ValueError) as error:
        raise _wrong(kind, options, f"which does not take its options: {error}") from error
    if not kind.is_made(made):
        raise _wrong(kind, options, f"which returns {made!r}, no {kind.made}")
    return made


def _factory(kind: _Kind, options: OptimizerOptions) -> Callable[..., Any]:
    key = f"config.optimizer.{kind.key}"
    return imports.resolve(kind.what, getattr(options, kind.key), kind.builtin, asked_by=key)


def _wrong(kind: _Kind, options: OptimizerOptions, reason: str) -> WrongValue:
    key = f"config.optimizer.{kind.key}"
    return WrongValue(key, f'names the {kind.what} "{getattr(options, kind.key)}", {reason}')


def _decayed(options: OptimizerOptions) -> Callable[[PyTree], PyTree] | None:
    """The mask of parameters that decay; None where all do."""
    kernels_alone, patterns = not options.decay_norm_and_bias, options.no_decay
    if not kernels_alone and not patterns:
        return None
    if kernels_alone:
        patterns = (*patterns, UNDECAYED)

    def decays(path: str, leaf: Any) -> bool:
        if kernels_alone and leaf.ndim < 2:
            return False
        return not any(re.search(pattern, path) for pattern in patterns)

    return functools.partial(map_with_paths, decays)


def _at_own_rates(options: OptimizerOptions) -> optax.GradientTransformation:
    """Multiplies updates by the rates of their parameters, each pattern's that is found there."""
    rates, no_decay = options.rates, options.no_decay
    head = ((HEADS, options.head_multiplier),) if options.head_multiplier != 1.0 else ()

    def init(params: PyTree) -> optax.EmptyState:
        found = {"no_decay": no_decay, "rates": dict(rates), "head_multiplier": dict(head)}
        for key, patterns in found.items():
            require_matches(f"config.optimizer.{key}", patterns, params)
        return optax.EmptyState()

    def scaled(path: str, update: Any) -> Any:
        for pattern, rate in (*head, *rates):
            if re.search(pattern, path):
                update = rate * update
        return update

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        return map_with_paths(scaled, updates), state

    return optax.GradientTransformation(init, update)
