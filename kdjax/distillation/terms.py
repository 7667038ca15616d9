"""Terms as a config holds them, the losses that they become, and the methods made of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kdjax import names, sections
from kdjax.distillation.builtin import LOSSES
from kdjax.distillation.loss import SCHEDULES, SIDES, Loss, loss_class
from kdjax.names import did_you_mean
from kdjax.sections import WrongValue

# Metrics that every run logs; a term's value is logged by the term's name.
RESERVED = ("loss", "cross_entropy", "auxiliary_cross_entropy", "learning_rate", "gradient_norm")
CHOICES = {
    "schedule": tuple(SCHEDULES),
    "resize": ("teacher", "student", "none"),
    "adapter": ("where_needed", "always", "never"),
}


def term(loss: str | type[Loss] | Callable[..., Any], **options: Any) -> dict[str, Any]:
    """A term as a config holds it: the name of its loss, with all options that it has.

    Args:
      loss: a built-in name, "package.module:attribute", or such a class or function itself.
      **options: what differs from the defaults: `student` and `teacher` (which map of each side, or
        several), `weight`, `schedule`, and the other fields of `distillation.Loss` and of the loss.

    Raises:
      UserError: for an unknown loss or option, with the nearest one.
    """
    name = names.name_of("loss", loss)
    kind = _class_of("term", name)
    _check_options("term", name, kind, options)
    return {"loss": name, **_defaults(kind), **options}


def make_loss(where: str, entry: Any) -> Loss:
    """Makes the loss of a term, as far as that can be done without the networks.

    Args:
      where: what messages call it, as "config.terms.cwd".
      entry: a loss, or what `term` returns.

    Raises:
      UserError: for an unknown loss, option or choice, a value of another type, or a weight that is
        negative or not finite.
    """
    name = where.rpartition(".")[2]
    if name in RESERVED:
        raise WrongValue(where, "is the name of a metric that is always logged; choose another")
    if isinstance(entry, Loss):
        loss = entry
    else:
        # A ConfigDict has items, and is no Mapping.
        if not hasattr(entry, "items"):
            raise WrongValue(where, f"is {entry!r}; it must be a loss, or a dict as of term()")
        values = {key: tuple(x) if isinstance(x, list) else x for key, x in entry.items()}
        if "loss" not in values:
            raise WrongValue(where, f"names no loss: {did_you_mean('', LOSSES)}")
        named = str(values.pop("loss"))
        kind = _class_of(f"{where}.loss", named)
        _check_options(where, named, kind, values)
        try:
            loss = kind(**values)  # pyright: ignore[reportArgumentType]  checked above
        except TypeError as error:
            raise WrongValue(where, f"({named}): {error}") from error
    for key, choices in CHOICES.items():
        if (value := getattr(loss, key)) not in choices:
            raise WrongValue(f"{where}.{key}", f'is "{value}": {did_you_mean(str(value), choices)}')
    # Below zero, a term would be maximised.
    for key in ("weight", "final_weight", "learning_rate"):
        sections.check_number(f"{where}.{key}", getattr(loss, key), sections.NOT_NEGATIVE)
    return loss


def need_teacher(terms: Mapping[str, Any]) -> bool:
    """Whether any of these terms reads a teacher, as `Distiller` takes them."""
    return any(make_loss(f"terms.{name}", entry).teacher for name, entry in terms.items())


def _class_of(where: str, name: str) -> type[Loss]:
    found = names.resolve("loss", name, LOSSES, asked_by=where)
    try:
        return loss_class(found)
    except (TypeError, ValueError) as error:
        raise WrongValue(where, f"names {name}: {error}") from error


def _defaults(kind: type[Loss]) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def _check_options(where: str, name: str, kind: type[Loss], given: Mapping[str, Any]) -> None:
    known, defaults = [field.name for field in dataclasses.fields(kind)], _defaults(kind)
    for key, value in given.items():
        if key not in known:
            raise WrongValue(f"{where}.{key}", f"is no key of {name}: {did_you_mean(key, known)}")
        if key in SIDES:
            _check_names(f"{where}.{key}", value, defaults[key])
        elif type(defaults.get(key)) in sections.KINDS:
            sections.check_type(f"{where}.{key}", value, defaults[key])
        if isinstance(value, float):
            sections.check_number(f"{where}.{key}", value, sections.FINITE)


def _check_names(key: str, value: Any, default: Any) -> None:
    """Requires the name of a map, or names; a loss without a teacher takes none."""
    if default is None and value is not None:
        raise WrongValue(key, f"is {value!r}; this loss reads no teacher")
    several = isinstance(value, tuple) and bool(value) and all(isinstance(x, str) for x in value)
    if default is not None and not isinstance(value, str) and not several:
        raise WrongValue(key, f'is {value!r}; it must be the name of a map, as "logits", or names')


# DSD's maps of networks without an auxiliary head.
_PAIR = ("head", "logits")

# Each method alone, on top of cross-entropy, with the weights of its paper or of its authors' code;
# where neither is known (NFD, PFS, FAKD), with those that `builtin` and `augmented` explain.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "pixelwise_kl": {"pixelwise_kl": term("pixelwise_kl")},
    # Shu et al. 2021: on the class scores, and on the features after the pyramid.
    "cwd": {"cwd": term("cwd")},
    "cwd_features": {"cwd": term("cwd", student="head", teacher="head", weight=50.0)},
    "nfd": {"nfd": term("nfd")},  # Liu et al. 2022
    "pfs": {"similarities": term("pfs"), "predictions": term("gap_weighted_kl")},  # Shan 2019
    "pfs_similarities": {"similarities": term("pfs")},
    "pfs_predictions": {"predictions": term("gap_weighted_kl")},
    # Yuan et al. 2022, on per-pixel KL (also at ISDA's strength) and on CWD.
    "fakd": {"fakd": term("fakd_kl")},
    "fakd_strong": {"fakd": term("fakd_kl", strength=7.5)},
    "fakd_cwd": {"fakd": term("fakd_cwd")},
    # What the field compares with (docs/methods): losses alone,
    **{
        name: {name: term(name)}
        for name in ("skd_pairwise", "l2", "pkd", "dkd", "wsld", "mas_kd", "ofd", "attn_fd")
    },
    "phi_s": {"standardized_l2": term("standardized_l2")},
    "dsd": {"dsd_pairs": term("dsd_pairs", student=_PAIR, teacher=_PAIR)},
    "dist": {"inter": term("dist_inter"), "intra": term("dist_intra")},
    "bpkd": {"body": term("bpkd"), "edge": term("bpkd", part="edge", weight=100.0)},
    # and beside per-pixel KL, as CIRKD's code runs them, FitNets' loss first; of IFVD also what
    # class scores of less than 64 x 64 allow, which are too small for the adversarial term.
    **{
        name: {"pixelwise_kl": term("pixelwise_kl"), loss: term(loss)}
        for name, loss in {
            "pixelwise_kl_l2": "l2",
            "attention_transfer": "attention_transfer",
            "pixelwise_kl_ifvd": "ifvd",
            "cirkd_minibatch": "cirkd_minibatch",
        }.items()
    },
    "skd": {
        "pixelwise_kl": term("pixelwise_kl"),
        "pairwise": term("skd_pairwise", window=2, stop_norms=False, weight=10.0),
        "holistic": term("holistic"),
    },
    "ifvd": {
        "pixelwise_kl": term("pixelwise_kl"),
        "ifvd": term("ifvd"),
        "holistic": term("holistic"),
    },
    # MGD's two shipped configs have CWD on the class scores beside it.
    "mgd": {"mgd": term("mgd"), "cwd": term("cwd")},
    "af_dcd": {"pixelwise_kl": term("pixelwise_kl"), "af_dcd": term("af_dcd")},
    "cirkd": {
        "pixelwise_kl": term("pixelwise_kl"),
        "cirkd_minibatch": term("cirkd_minibatch"),
        "cirkd_memory": term("cirkd_memory"),
    },
    "jml": {
        "pixelwise_kl": term("pixelwise_kl"),
        "jml": term("jml"),
        "jml_labels": term("jml", target="labels"),
    },
}

# A method that is another one with something added or weighted: its own effect is what it gains
# over that one, and not what both gain over the plain student.
BUILDS_ON = {
    **dict.fromkeys(
        (
            "pixelwise_kl_l2",
            "pixelwise_kl_ifvd",
            "attention_transfer",
            "skd",
            "cirkd_minibatch",
            "af_dcd",
            "jml",
        ),
        "pixelwise_kl",
    ),
    "ifvd": "pixelwise_kl_ifvd",
    "phi_s": "l2",
    "mgd": "cwd",
    "cirkd": "cirkd_minibatch",
    "pfs_predictions": "pixelwise_kl",
    "fakd": "pixelwise_kl",
    "fakd_strong": "pixelwise_kl",
    "fakd_cwd": "cwd",
}
