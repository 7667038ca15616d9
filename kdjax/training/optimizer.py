"""The optimizer, its learning rate, and rules for single parameters, from `config.optimizer`."""

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
    # Micro-batches per step. Their gradients count alike, each that of its own mean over labeled
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


OPTIMIZERS: Mapping[str, str] = MappingProxyType(
    {"sgd": "kdjax.training.optimizer:sgd", "adamw": "optax:adamw"}
)
SCHEDULES: Mapping[str, str] = MappingProxyType({"poly": "kdjax.training.optimizer:poly"})

# The layers on top of a backbone, which are trained from scratch.
HEADS = r"(^|/)(head|auxiliary_head|terms)(/|$)"

# Arrays with two or more axes that are not kernels: Swin's position biases, as in mmsegmentation's
# configs; and in other networks, embeddings, and the biases of several attention heads.
UNDECAYED = r"(^|/)(relative_position_bias_table|absolute_pos_embed|pos_embed|cls_token|bias)(/|$)"

# The names of an argument in kdjax and in Optax. A factory gets the first one that it takes.
_RATE = ("learning_rate", "peak_value", "init_value", "value")
_STEPS = ("steps", "decay_steps", "transition_steps")
_MASK = ("mask", "weight_decay_mask")
_SHOWN = 5  # paths in a message


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    mask: Any = None,
    nesterov: bool = False,
    accumulator_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Returns SGD as in PyTorch: weight decay is added to the gradient before the momentum.

    Args:
      learning_rate: the rate of each step.
      momentum: the share of the sum of gradients that is kept.
      weight_decay: the share of a parameter that is added to its gradient.
      mask: the parameters that decay, as in `optax.add_decayed_weights`.
      nesterov: True for Nesterov momentum.
      accumulator_dtype: the dtype of the sum of gradients; None for that of the parameters.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(momentum, nesterov, accumulator_dtype),
        optax.scale_by_learning_rate(learning_rate),
    )


def poly(
    *, learning_rate: float, steps: int, min_learning_rate: float, poly_power: float
) -> optax.Schedule:
    """Returns poly decay: `(start - end) * (1 - step / steps)^power + end`."""
    return optax.polynomial_schedule(learning_rate, min_learning_rate, poly_power, steps)


class _Call(NamedTuple):
    """A call of the factory that a config key names."""

    key: str
    name: str
    factory: Callable[..., Any]
    arguments: dict[str, Any]

    def made(self, kind: str, fits: Callable[[Any], bool]) -> Any:
        """Returns the factory's result; raises `UserError` if the result is not of this kind."""
        try:
            result = self.factory(**self.arguments)
        except (TypeError, ValueError) as error:
            raise WrongValue(
                self.key, f'names "{self.name}", which does not take its options: {error}'
            ) from error
        if not fits(result):
            raise WrongValue(self.key, f'names "{self.name}", which returns {result!r}, no {kind}')
        return result


def learning_rate_schedule(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Returns the learning rate of `config.optimizer` by step.

    A schedule factory, such as `poly` or `optax.cosine_decay_schedule`, is called by keyword with
    `options.schedule_options`. Unless these set them, it also gets `learning_rate` (in Optax
    `peak_value`, `init_value`, or `value`) and `steps` (`decay_steps`, `transition_steps`) if it
    takes them, and `min_learning_rate` and `poly_power` if it requires them. The result is
    multiplied by a linear warm-up over `options.warmup_steps`.

    Args:
      options: the section `config.optimizer`.
      steps: length of the run.

    Raises:
      UserError: if the schedule is unknown, or does not take the options.
    """
    schedule = _schedule_call(options, steps).made("function from step to rate", callable)
    if not options.warmup_steps:
        return schedule
    # The decay counts from step 0. In mmsegmentation it counts from the end of the warm-up.
    warmup = optax.linear_schedule(0.0, 1.0, options.warmup_steps)
    return lambda step: warmup(step) * schedule(step)


def make_optimizer(options: OptimizerOptions, steps: int) -> optax.GradientTransformation:
    """Returns the gradient transformation of `config.optimizer`.

    An optimizer factory, such as `sgd` or `optax.lion`, is called by keyword with
    `options.options` and the schedule as its `learning_rate`. Unless the options set them, it also
    gets `weight_decay` and the `mask` (`weight_decay_mask`) of the parameters that decay if it
    takes them, and `momentum` if it requires it. Gradients are clipped before, and updates are
    multiplied by the rates of their parameters after.

    Args:
      options: the section `config.optimizer`.
      steps: length of the run.

    Raises:
      UserError: if the optimizer or the schedule is unknown, or does not take the options; on
        `init`, if a pattern matches no parameter.
    """
    schedule = learning_rate_schedule(options, steps)
    transformation = _optimizer_call(options, schedule).made(
        "optax.GradientTransformation",
        lambda made: hasattr(made, "init") and hasattr(made, "update"),
    )
    parts = []
    if options.gradient_clip:
        parts.append(optax.clip_by_global_norm(options.gradient_clip))
    return optax.chain(*parts, transformation, _at_own_rates(options))


def check_optimizer(options: OptimizerOptions) -> frozenset[str]:
    """Checks `config.optimizer` without parameters, and without calling a factory.

    Returns:
      "learning_rate" and "weight_decay" if the schedule or the optimizer gets them from the config.

    Raises:
      UserError: see `learning_rate_schedule` and `make_optimizer`.
    """
    rate = _schedule_call(options, 1).arguments
    given = _optimizer_call(options, None).arguments
    found = set()
    if any(key in rate and key not in options.schedule_options for key in _RATE):
        found.add("learning_rate")
    if "weight_decay" in given and "weight_decay" not in options.options:
        found.add("weight_decay")
    return frozenset(found)


def depends_on_steps(options: OptimizerOptions) -> bool:
    """Returns True if the learning rate of a step depends on the number of steps of the run."""
    return _schedule_call(options, 1).arguments != _schedule_call(options, 2).arguments


def _schedule_call(options: OptimizerOptions, steps: int) -> _Call:
    return _call(
        *("schedule", options.schedule, SCHEDULES, options.schedule_options),
        offered={_RATE: options.learning_rate, _STEPS: steps},
        if_required={
            "min_learning_rate": options.min_learning_rate,
            "poly_power": options.poly_power,
        },
        key="config.optimizer.schedule",
        options_key="config.optimizer.schedule_options",
    )


def _optimizer_call(options: OptimizerOptions, schedule: optax.Schedule | None) -> _Call:
    decayed = _decayed(options)
    offered: dict[tuple[str, ...], Any] = {
        ("learning_rate",): schedule,
        ("weight_decay",): options.weight_decay,
    }
    if decayed is not None:
        offered[_MASK] = decayed
    call = _call(
        *("optimizer", options.name, OPTIMIZERS, options.options),
        offered=offered,
        if_required={"momentum": options.momentum},
        key="config.optimizer.name",
        options_key="config.optimizer.options",
    )
    given = call.arguments
    if "learning_rate" not in given:
        raise WrongValue(call.key, f'names "{call.name}", which takes no learning_rate')
    if decayed is not None and "weight_decay" in given and not set(_MASK) & set(given):
        key = "decay_norm_and_bias" if not options.decay_norm_and_bias else "no_decay"
        raise WrongValue(
            f"config.optimizer.{key}",
            f"keeps parameters from decaying, for which {options.name} takes no mask; leave it "
            "out, or set config.optimizer.weight_decay by parameter in a factory of your own",
        )
    return call


def _call(
    kind: str,
    name: str,
    builtin: Mapping[str, str],
    options: Mapping[str, Any],
    *,
    offered: Mapping[tuple[str, ...], Any],
    if_required: Mapping[str, Any],
    key: str,
    options_key: str,
) -> _Call:
    """Finds a factory by name, and the arguments to call it with; see `imports.arguments`."""
    factory = imports.resolve(kind, name, builtin, asked_by=key)
    arguments = imports.arguments(
        *(kind, name, factory, options, offered, if_required), key=key, options_key=options_key
    )
    return _Call(key, name, factory, arguments)


def map_with_paths(function: Callable[[str, Any], Any], params: PyTree) -> PyTree:
    """Maps `function(path, leaf)`. A path is like "student/backbone/stem/conv/kernel"."""
    path_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(path_of(keys), leaf), params
    )


def _decayed(options: OptimizerOptions) -> Callable[[PyTree], PyTree] | None:
    """Returns the mask of the parameters that decay; None if all decay."""
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
    """Multiplies the update of a parameter by the rate of every pattern that matches its path."""
    head = ((HEADS, options.head_multiplier),) if options.head_multiplier != 1.0 else ()
    rates = (*head, *options.rates)

    def init(params: PyTree) -> optax.EmptyState:
        _check_matches("no_decay", options.no_decay, params)
        _check_matches("rates", dict(options.rates), params)
        _check_matches("head_multiplier", dict(head), params)
        return optax.EmptyState()

    def scaled(path: str, update: Any) -> Any:
        for pattern, rate in rates:
            if re.search(pattern, path):
                update = rate * update
        return update

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        return map_with_paths(scaled, updates), state

    return optax.GradientTransformation(init, update)


def _check_matches(key: str, patterns: Iterable[str], params: PyTree) -> None:
    """Checks that every pattern matches the path of a parameter.

    Raises:
      UserError: for the first pattern that does not; names a few paths.
    """
    paths = jax.tree.leaves(map_with_paths(lambda path, _: path, params))
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            # From all over the network, because neighbors are alike.
            shown = paths[:: -(-len(paths) // _SHOWN)] if paths else []
            raise WrongValue(
                f"config.optimizer.{key}",
                f'has "{pattern}", which is found in no path of the {len(paths)} parameters, as '
                f"{', '.join(shown)}",
            )
