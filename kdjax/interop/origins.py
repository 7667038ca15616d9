"""Tells by their names where weights come from."""

from collections.abc import Iterable, Mapping
from typing import Any

from kdjax.errors import UserError
from kdjax.interop.classifiers import from_classifier, is_classifier
from kdjax.interop.mmseg import from_mmseg
from kdjax.interop.torchvision import from_torchvision
from kdjax.models import Segmenter

MMSEG = "mmsegmentation"
TORCHVISION = "torchvision"
IMAGENET = "an image classifier"


def origin(names: Iterable[str]) -> str:
    """Returns `MMSEG`, `TORCHVISION` or `IMAGENET` (of whichever project).

    Raises:
      UserError: where the names are none of these.
    """
    names = [name.removeprefix("module.") for name in names]
    prefixes = {name.partition(".")[0] for name in names}
    if "decode_head" in prefixes:
        return MMSEG
    if {"backbone", "classifier"} <= prefixes:
        return TORCHVISION
    if is_classifier(names):
        return IMAGENET
    raise UserError(
        f"weights named {', '.join(names[:3])} and so on are not known; known are those of "
        "mmsegmentation, torchvision's FCN and DeepLabV3, and ResNet, MobileNetV2 and Mix "
        "Transformer backbones of torchvision, timm and OpenMMLab"
    )


def has_auxiliary_head(names: Iterable[str]) -> bool:
    """Whether a network needs its auxiliary head to take the weights of these names."""
    names = list(names)
    if origin(names) == IMAGENET:
        return True
    return any("auxiliary_head." in name or "aux_classifier." in name for name in names)


def load(net: Segmenter, weights: Mapping[str, Any], *, new_classifier: bool = False) -> None:
    """Sets a network to weights of any known origin.

    Args:
      net: a network of `kdjax.models`.
      weights: arrays by name, as `read` returns them.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: where the origin is unknown or the weights are not this network's.
    """
    source = origin(weights)
    if source == IMAGENET:
        from_classifier(net, weights)
    elif source == TORCHVISION:
        from_torchvision(net, weights, new_classifier=new_classifier)
    else:
        from_mmseg(net, weights, new_classifier=new_classifier)
