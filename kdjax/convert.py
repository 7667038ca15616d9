"""Converts the weights of a PyTorch network to a network checkpoint.

python -m kdjax.convert --source FILE --model pspnet_r101 --num_classes 19 --output DIR

FILE is a `.pth` file (which needs PyTorch) or a `.safetensors` file: a network of mmsegmentation, a
torchvision FCN or DeepLabV3 (`--model deeplabv3_resnet101`), a SegFormer of HuggingFace's
(`segformer_linear_b0`) or of its authors (`segformer_b0@nvlabs`), a student or teacher of CIRKD
(`deeplabv3_r18@cirkd`) or TorchDistiller (`pspnet_r18@torchdistiller`), or a ResNet, MobileNetV2 or
Mix Transformer that classifies images, which becomes the backbone under fresh heads
(`pspnet_r18b`). Where a distiller left its student and more in one file, the student is taken. The
result is what `config.teacher.checkpoint`, `config.student.checkpoint` and (the backbone alone,
whatever the classes) `config.student.backbone` take.

Images are normalised as the project does it, ImageNet's mean and deviation or the mean alone; a
file that was trained otherwise needs --mean and --std (in units of 8-bit pixels, red first), and
--bgr where its images had blue first. What is written reads images with red first.
"""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags
from flax import nnx

from kdjax import command, interop
from kdjax.errors import UserError
from kdjax.models import Segmenter, saved
from kdjax.models.keys import traced_rngs
from kdjax.models.preprocessing import Preprocessing

_SOURCE = flags.DEFINE_string("source", None, "The checkpoint file.", required=True)
_MODEL = flags.DEFINE_string("model", None, "The network, as pspnet_r101.", required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "How many classes the network scores.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the checkpoint is written.", required=True)
_NEW_CLASSIFIER = flags.DEFINE_bool(
    "new_classifier", False, "Start classifiers anew where their number of classes differs."
)
_MEAN = flags.DEFINE_list("mean", None, "Three numbers, as 123.675,116.28,103.53.")
_STD = flags.DEFINE_list("std", None, "Three numbers, as 58.395,57.12,57.375.")
_BGR = flags.DEFINE_bool("bgr", False, "The file's network reads images with blue first.")
_SEED = flags.DEFINE_integer("seed", 0, "Seeds what starts anew.")


def main(argv: list[str]) -> None:
    """Writes the checkpoint and says what is in it."""
    del argv
    weights, meta = interop.read(_SOURCE.value)
    count = _NUM_CLASSES.value
    class_names, palette = _classes(meta, count)
    try:
        origin = interop.origin(weights)
        if _BGR.value and origin in interop.BLUE_FIRST:
            raise UserError(f"--bgr: weights of {origin} are always turned to red first")
        turned = ", blue first there" if _BGR.value or origin in interop.BLUE_FIRST else ""
        info = saved.NetworkInfo(
            name=_MODEL.value,
            num_classes=count,
            width=64,
            auxiliary=interop.has_auxiliary_head(weights),
            class_names=class_names,
            palette=palette,
            preprocessing=_preprocessing(interop.preprocessing(origin)),
            source=f"{origin}, {os.path.basename(_SOURCE.value)}{turned}",
        )

        def create() -> Segmenter:
            return info.create(dtype="float32", rngs=traced_rngs(_SEED.value))

        # Only what keeps some of its initial values needs them; they take as much as the file.
        keeps = _NEW_CLASSIFIER.value or origin == interop.IMAGENET
        net = create() if keeps else nnx.eval_shape(create)
        interop.load(net, weights, new_classifier=_NEW_CLASSIFIER.value)
        del weights
        if _BGR.value:
            interop.red_first(net)
    except UserError as error:
        raise UserError(f"{_SOURCE.value}: {error}") from error
    info = saved.save(_OUTPUT.value, info, nnx.state(net))
    print(f"{info.name} with {count} classes is in {_OUTPUT.value} (weights {info.fingerprint})")


def _preprocessing(usual: Preprocessing) -> Preprocessing:
    """The project's normalisation, or what the flags say instead."""
    changes = {}
    for flag in (_MEAN, _STD):
        if flag.value is not None:
            try:
                red, green, blue = map(float, flag.value)
            except ValueError as error:
                raise UserError(
                    f"--{flag.name} is {','.join(flag.value)}; it takes three numbers, red first"
                ) from error
            changes[flag.name] = (red, green, blue)
    if 0 in changes.get("std", ()):
        raise UserError("--std holds a 0, and images are divided by it")
    return usual._replace(**changes)


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
