"""Finds and makes networks by name: those of kdjax, and a user's own."""

import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx

from kdjax.models.adapters import NNXNetwork, is_network, network_of, traced_rngs
from kdjax.models.architectures import ARCHITECTURES, EXTRACTORS
from kdjax.models.network import Network, NotANetwork
from kdjax.models.options import DTYPES, NetworkOptions
from kdjax.models.segmenter import FeatureExtractor, Segmenter
from kdjax.utils import imports, schema
from kdjax.utils.errors import RAISED_BY_USERS, UserError, WrongValue

# Built-in networks are imported by "package.module:attribute" like a user's own.
built_in = types.SimpleNamespace(**ARCHITECTURES, **EXTRACTORS)
NETWORKS = {name: f"{__name__}:built_in.{name}" for name in vars(built_in)}


# 0 is an int too.
@overload
def create(  # pyright: ignore[reportOverlappingOverload]
    name: str,
    *,
    num_classes: Literal[0],
    rngs: nnx.Rngs,
    width: int = NetworkOptions.width,
    auxiliary: bool = True,
    in_channels: int = 3,
    dtype: str = NetworkOptions.dtype,
) -> FeatureExtractor: ...
@overload
def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    width: int = NetworkOptions.width,
    auxiliary: bool = True,
    in_channels: int = 3,
    dtype: str = NetworkOptions.dtype,
) -> Segmenter: ...
def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    width: int = NetworkOptions.width,
    auxiliary: bool = True,
    in_channels: int = 3,
    dtype: str = NetworkOptions.dtype,
) -> Segmenter | FeatureExtractor:
    """Creates a network of kdjax, with new float32 parameters.

    Args:
      name: one of `NETWORKS`, for example "pspnet_r18", or "dinov2_s" for a backbone alone.
      num_classes: K, the number of class scores per pixel; 0 for a backbone alone.
      rngs: source of the initial parameters.
      width: channels of the first stage, an even number. 64 is the published network; other
        widths scale all channels.
      auxiliary: build the auxiliary head, which runs only in training. `fcn_hr*`, SegFormer, and
        CIRKD's MobileNetV2 have none.
      in_channels: the channels of the images: 3 for photos, or the number of their bands.
      dtype: the type in which the network computes, "float32" or "bfloat16".

    Raises:
      UserError: for an unknown name, width or dtype.
    """
    factory, arguments = find(
        name,
        num_classes=num_classes,
        width=width,
        auxiliary=auxiliary,
        in_channels=in_channels,
        dtype=dtype,
    )
    return factory(**{**arguments, "rngs": rngs})


def make_network(name: str, *, where: str = "network", **settings: Any) -> Network:
    """Makes a network by name, one of kdjax or a user's own.

    Args:
      name: as in `find`.
      where: what holds the name, for messages, for example "config.student".
      **settings: as in `find`.

    Raises:
      UserError: as `find`; also if a factory fails, or returns something that is not a network.
    """
    found, arguments = find(name, where=where, **settings)
    try:
        if is_network(found):
            return network_of(found)
        if "rngs" not in arguments:
            return network_of(found(**arguments))

        def make(rngs: nnx.Rngs) -> Any:
            return found(**{**arguments, "rngs": rngs})

        module: Any = nnx.eval_shape(lambda: make(traced_rngs(0)))
        if isinstance(module, nnx.bridge.ToNNX):
            return network_of(module)
        return NNXNetwork(make, module)
    except RAISED_BY_USERS as error:
        message = str(error)
        if not isinstance(error, NotANetwork):
            message = f"{type(error).__name__}: {error}"
        raise WrongValue(f"{where}.name", f'names the network "{name}": {message}') from error


def find(
    name: str,
    *,
    num_classes: int,
    width: int = NetworkOptions.width,
    auxiliary: bool = True,
    in_channels: int = 3,
    dtype: str = NetworkOptions.dtype,
    options: Mapping[str, Any] = MappingProxyType({}),
    where: str = "network",
) -> tuple[Any, dict[str, Any]]:
    """Returns the object that a name refers to, and the arguments to call it with.

    A factory gets `num_classes`, and those of `width`, `auxiliary`, `in_channels`, `dtype`, and
    `rngs` that it has. It must have `num_classes`, unless it is a class with the methods of a
    `Network`. Width and dtype must keep their defaults if the factory does not have them.

    Args:
      name: one of `NETWORKS`, or "package.module:attribute" of a factory or of a network.
      num_classes: as in `create`.
      width: as in `create`.
      auxiliary: as in `create`.
      in_channels: as in `create`.
      dtype: as in `create`.
      options: further keyword arguments of the factory.
      where: what holds the name, for messages.

    Raises:
      UserError: for an unknown name, width, dtype or option, or a missing argument.
    """
    found = imports.resolve("network", name, NETWORKS, asked_by=f"{where}.name")
    if num_classes < 0:
        raise UserError(f"num_classes is {num_classes}; it must not be negative")
    schema.check_number(f"{where}.width", width, schema.WIDTH)
    if dtype not in DTYPES:
        raise WrongValue(f"{where}.dtype", f'is "{dtype}"; it must be {" or ".join(DTYPES)}')
    settings = {"width": width, "auxiliary": auxiliary, "dtype": dtype}
    given: dict[str, Any] = {}
    if not is_network(found):
        offered = {
            "num_classes": num_classes,
            **settings,
            "in_channels": in_channels,
            "dtype": jnp.dtype(dtype),
            "rngs": None,
        }
        given = imports.arguments(
            "network",
            name,
            found,
            options,
            {(argument,): value for argument, value in offered.items()},
            key=f"{where}.name",
            options_key=f"{where}.options",
        )
        # A checkpoint from a stranger names what is called, so call only factories of networks.
        network = isinstance(found, type) and issubclass(found, Network)
        if not network and ("num_classes" not in given or "num_classes" in options):
            raise WrongValue(
                f"{where}.name",
                f'names the network "{name}", which is no factory of networks: it must have an '
                "argument num_classes, which kdjax sets",
            )
    elif options:
        raise WrongValue(f"{where}.options", f"is {dict(options)}, and {name} is no factory")
    # `auxiliary` may be missing: such a network decides by itself.
    for key in ("width", "dtype"):
        if key not in given and settings[key] != getattr(NetworkOptions, key):
            raise WrongValue(
                f"{where}.{key}",
                f"is {settings[key]!r}, and {name} takes no {key}; set its own arguments in "
                f"{where}.options",
            )
    return found, given
