"""Any HuggingFace model for semantic segmentation as a teacher, and DINOv2 or DINOv3 as features.

    pip install torch transformers
    export TEACHER=facebook/mask2former-swin-tiny-cityscapes-semantic
    python -m kdjax train --config examples/teacher_huggingface.py --workdir runs/from_hub \\
        --config.data.name=cityscapes --config.data.data_dir=data/cityscapes

TEACHER is a model's name on the Hub, or a folder of `save_pretrained`. This file accepts four kinds
of models:

- class scores for each pixel: SegFormer, UPerNet, DPT, and others named ...ForSemanticSegmentation;
- scores from queries: MaskFormer, Mask2Former, EoMT;
- features in place of scores: DINOv2, DINOv3.

The data must have the classes of the model. Without the two keys of the data, the config trains on
the quickstart's shapes.
"""

import functools
import os
from typing import Any

import torch
import transformers
from torch.nn import functional

from kdjax import recipes
from kdjax.config import Config, term
from kdjax.interop import TorchTeacher
from kdjax.models import Preprocessing, query_logits

QUERIES = ("MaskFormer", "Mask2Former", "Eomt")


@functools.cache
def teacher() -> TorchTeacher:
    """Returns the teacher that `config.teacher.checkpoint` names."""
    source = os.environ["TEACHER"]
    config: Any = transformers.AutoConfig.from_pretrained(source)
    model = getattr(transformers, config.architectures[0]).from_pretrained(source)
    return teacher_of(model, preprocessing(source))


def teacher_of(model: Any, preprocessing: Preprocessing) -> TorchTeacher:
    """Returns a model of transformers as a teacher."""
    kind, names = type(model).__name__, tuple(model.config.id2label.values())
    if kind.startswith(QUERIES):
        return TorchTeacher(
            model,
            forward=queries,
            maps=lambda found: query_logits(found["classes"], found["masks"]),
            preprocessing=preprocessing,
            class_names=names,
        )
    if kind.endswith("ForSemanticSegmentation"):
        return TorchTeacher(
            model,
            forward=lambda model, images: model(images).logits,
            preprocessing=preprocessing,
            class_names=names,
        )
    return TorchTeacher(model, forward=features, preprocessing=preprocessing)


def preprocessing(source: str) -> Preprocessing:
    """Returns the mean and deviation of a model, in units of 8-bit pixels."""
    values, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
    mean, std = (tuple(255 * x for x in values[key]) for key in ("image_mean", "image_std"))
    return Preprocessing(mean, std)


def queries(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns class logits [B, Q, K + 1], and mask logits [B, Q, h, w] at stride 4."""
    grid = [-(-side // 4) for side in images.shape[-2:]]
    if type(model).__name__.startswith("Eomt"):
        # EoMT takes squares of one size.
        size = (model.config.image_size,) * 2
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    output = model(images)
    masks = functional.interpolate(output.masks_queries_logits, grid, mode="bilinear")
    return {"classes": output.class_queries_logits, "masks": masks}


def features(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the last features [B, C, h, w] of a vision transformer, without its other tokens."""
    height, width = (side // model.config.patch_size for side in images.shape[-2:])
    tokens = model(images).last_hidden_state[:, -height * width :]
    return {"features": tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)}


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, distilled from the teacher's scores."""
    config = recipes.shapes()
    config.teacher.name = ""  # the checkpoint describes the network
    config.teacher.checkpoint = "teacher_huggingface:teacher"
    with config.unlocked():
        config.terms.cwd = term("cwd")
    return config
