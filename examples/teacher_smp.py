"""A network of segmentation_models_pytorch as a teacher: its class scores and its last features.

    pip install torch torchvision segmentation-models-pytorch
    export TEACHER=my_unet
    python -m kdjax train --config examples/teacher_smp.py --workdir runs/from_smp \\
        --config.data.name=folder --config.data.data_dir=data/mine

TEACHER is a folder of the model's `save_pretrained`, or its name on the Hub. The data must have the
classes of the model, in the same order. Without the two keys of the data, the config trains on the
quickstart's shapes.
"""

import functools
import os
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from kdjax import recipes
from kdjax.config import Config, term
from kdjax.interop import TorchTeacher


@functools.cache
def teacher() -> TorchTeacher:
    """Returns the teacher that `config.teacher.checkpoint` names."""
    return teacher_of(smp.from_pretrained(os.environ["TEACHER"]))


def teacher_of(model: Any) -> TorchTeacher:
    """Returns a model, such as `smp.Unet("resnet34", classes=19)`, as a teacher.

    The images are normalized as for ImageNet. A model that was trained otherwise needs the argument
    `preprocessing` of `TorchTeacher`.
    """
    return TorchTeacher(model, forward=maps)


def maps(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the class scores, and the features that the segmentation head reads.

    The images are padded below and on the right to multiples of the encoder's stride.
    """
    height, width = images.shape[-2:]
    below, right = (-side % model.encoder.output_stride for side in (height, width))
    padded = functional.pad(images, (0, right, 0, below))
    head = model.decoder(model.encoder(padded))
    stride = padded.shape[-2] // head.shape[-2]
    return {
        "logits": model.segmentation_head(head)[..., :height, :width],
        "head": head[..., : -(-height // stride), : -(-width // stride)],
    }


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, distilled from scores and features."""
    config = recipes.shapes()
    config.teacher.name = ""  # the checkpoint describes the network
    config.teacher.checkpoint = "teacher_smp:teacher"
    with config.unlocked():
        config.terms.cwd = term("cwd")
        config.terms.features = term("cwd", student="head", teacher="head", weight=1.0)
    return config
