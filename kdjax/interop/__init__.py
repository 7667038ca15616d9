"""Weights from and to PyTorch projects, as dicts of NumPy arrays; whose they are, names tell."""

from collections.abc import Iterable, Mapping
from typing import Any

from kdjax.interop.files import Checkpoint, read_weights, unwrapped
from kdjax.interop.libraries import (
    from_classifier,
    from_timm,
    from_torchvision,
    is_classifier,
    is_efficientnet_lite,
    segformer_to_mmseg,
    to_timm,
)
from kdjax.interop.mmseg import from_backbone, from_mmseg, to_mmseg, weights_of
from kdjax.interop.projects import from_cirkd, from_nvlabs, from_torchdistiller, red_first
from kdjax.models import Segmenter
from kdjax.models.outputs import EFFICIENTNET_LITE as EFFICIENTNET_LITE_PREPROCESSING
from kdjax.models.outputs import IMAGENET as IMAGENET_PREPROCESSING
from kdjax.models.outputs import MEAN_ONLY, Preprocessing
from kdjax.utils.errors import UserError

__all__ = [
    "EFFICIENTNET_LITE_PREPROCESSING",
    "IMAGENET_PREPROCESSING",
    "Checkpoint",
    "from_backbone",
    "from_cirkd",
    "from_classifier",
    "from_mmseg",
    "from_nvlabs",
    "from_timm",
    "from_torchdistiller",
    "from_torchvision",
    "has_auxiliary_head",
    "load_weights",
    "origin",
    "preprocessing",
    "read_weights",
    "red_first",
    "segformer_to_mmseg",
    "to_mmseg",
    "to_timm",
]

MMSEG = "mmsegmentation"
TORCHVISION = "torchvision"
HUGGINGFACE = "HuggingFace"
CIRKD = "CIRKD"
TORCHDISTILLER = "TorchDistiller"
NVLABS = "SegFormer's authors"
IMAGENET = "an image classifier"
EFFICIENTNET_LITE = "EfficientNet-Lite"

# What weights of each origin have beside others: the beginnings of some of their names. The first
# row that fits counts.
MARKS = {
    HUGGINGFACE: {"segformer", "decode_head"},
    MMSEG: {"decode_head"},
    TORCHVISION: {"backbone", "classifier"},
    CIRKD: {"pretrained", "head"},
    TORCHDISTILLER: {"pspmodule", "head"},
}

# Projects whose images have blue first; reading their weights turns that around.
BLUE_FIRST = (CIRKD, TORCHDISTILLER)
# Whose weights are a backbone alone.
CLASSIFIERS = (IMAGENET, EFFICIENTNET_LITE)


def origin(names: Iterable[str]) -> str:
    """Returns where weights of these names come from: a key of `READERS`, or of `CLASSIFIERS`.

    `IMAGENET` is a backbone alone, of whichever project.

    Raises:
      UserError: where the names are none of these.
    """
    names = list(unwrapped(names).values())
    prefixes = {name.partition(".")[0] for name in names}
    # They have mmsegmentation's parts, and a head of their own.
    if "decode_head.linear_pred.weight" in names:
        return NVLABS
    for project, marks in MARKS.items():
        if marks <= prefixes:
            return project
    # CIRKD's SegFormer has neither head nor backbone in its names.
    if {"patch_embed1", "linear_pred"} <= prefixes:
        return CIRKD
    if is_efficientnet_lite(names):
        return EFFICIENTNET_LITE
    if is_classifier(names):
        return IMAGENET
    raise UserError(
        f"weights named {', '.join(names[:3])} and so on are not known; known are those of "
        "mmsegmentation, torchvision's FCN and DeepLabV3, SegFormer of HuggingFace and of its "
        "authors, CIRKD, TorchDistiller, and ResNet, MobileNetV2, EfficientNet-Lite and Mix "
        "Transformer backbones of torchvision, timm, OpenMMLab, efficientnet-lite-pytorch and "
        "SegFormer's authors"
    )


def preprocessing(project: str) -> Preprocessing:
    """Returns how a project prepares images; the order of the channels is always RGB here."""
    if project == EFFICIENTNET_LITE:
        return EFFICIENTNET_LITE_PREPROCESSING
    return MEAN_ONLY if project in BLUE_FIRST else IMAGENET_PREPROCESSING


# What auxiliary heads are called.
AUXILIARY = ("auxiliary_head.", "aux_classifier.", "auxlayer.", "dsn.")


def has_auxiliary_head(names: Iterable[str]) -> bool:
    """Whether a network needs its auxiliary head to take the weights of these names."""
    names = list(unwrapped(names).values())
    if origin(names) in CLASSIFIERS:
        return True
    return any(part in name for name in names for part in AUXILIARY)


def _from_huggingface(net: Segmenter, weights: Mapping[str, Any], *, new_classifier: bool) -> None:
    from_mmseg(net, segformer_to_mmseg(weights_of(weights)), new_classifier=new_classifier)


READERS = {
    MMSEG: from_mmseg,
    TORCHVISION: from_torchvision,
    HUGGINGFACE: _from_huggingface,
    CIRKD: from_cirkd,
    TORCHDISTILLER: from_torchdistiller,
    NVLABS: from_nvlabs,
}


def load_weights(
    net: Segmenter, weights: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to weights of any known origin.

    Args:
      net: a network of `kdjax.models`.
      weights: arrays by name, as `read_weights` returns them.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: where the origin is unknown or the weights are not this network's.
    """
    source = origin(weights)
    if source in CLASSIFIERS:
        from_classifier(net, weights)
    else:
        READERS[source](net, weights, new_classifier=new_classifier)
