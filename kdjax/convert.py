"""Converts the weights of a PyTorch network to a network checkpoint.

python -m kdjax.convert --source FILE --model pspnet_r101 --num_classes 19 --output DIR

FILE is a `.pth` file (which needs PyTorch) or a `.safetensors` file: a network of mmsegmentation, a
torchvision FCN or DeepLabV3 (`--model deeplabv3_resnet101`), or a ResNet, MobileNetV2 or Mix
Transformer that classifies images, which becomes the backbone under fresh heads (`--model
pspnet_r18`). The result is what `config.teacher.checkpoint`, `config.student.checkpoint` and (the
backbone alone, whatever the classes) `config.student.backbone` take.
"""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags
from flax import nnx

from kdjax import command, interop
from kdjax.errors import UserError
from kdjax.models import saved

_SOURCE = flags.DEFINE_string("source", None, "The checkpoint file.", required=True)
_MODEL = flags.DEFINE_string("model", None, "The network, as pspnet_r101.", required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "How many classes the network scores.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the checkpoint is written.", required=True)
_NEW_CLASSIFIER = flags.DEFINE_bool(
    "new_classifier", False, "Start classifiers anew where their number of classes differs."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seeds what starts anew.")


def main(argv: list[str]) -> None:
    """Writes the checkpoint and says what is in it."""
    del argv
    weights, meta = interop.read(_SOURCE.value)
    count = _NUM_CLASSES.value
    class_names, palette = _classes(meta, count)
    try:
        info = saved.NetworkInfo(
            name=_MODEL.value,
            num_classes=count,
            width=64,
            auxiliary=interop.has_auxiliary_head(weights),
            class_names=class_names,
            palette=palette,
            source=f"{interop.origin(weights)}, {os.path.basename(_SOURCE.value)}",
        )
        net = info.create(dtype="float32", rngs=nnx.Rngs(_SEED.value))
        interop.load(net, weights, new_classifier=_NEW_CLASSIFIER.value)
    except UserError as error:
        raise UserError(f"{_SOURCE.value}: {error}") from error
    info = saved.save(_OUTPUT.value, info, nnx.state(net))
    print(f"{info.name} with {count} classes is in {_OUTPUT.value} (weights {info.fingerprint})")


def _classes(
    meta: Mapping[str, Any], count: int
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and colours of the classes: the checkpoint's own where it has as many, else numbers."""
    described = meta.get("dataset_meta", meta)
    names = described.get("classes") or described.get("CLASSES") or ()
    colors = described.get("palette") or described.get("PALETTE") or ()
    if len(names) == len(colors) == count:
        return tuple(map(str, names)), tuple(tuple(map(int, color)) for color in colors)
    # Here and not above: the data room brings TensorFlow, which nothing else here needs.
    from kdjax.data.builder import distinct_colors

    numbered = tuple(f"class {index}" for index in range(count))
    return numbered, tuple(tuple(color) for color in distinct_colors(count).tolist())


if __name__ == "__main__":
    command.run(main)
