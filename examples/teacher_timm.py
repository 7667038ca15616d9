"""A backbone of timm as a teacher of features, without class scores.

    pip install torch torchvision timm
    export TEACHER=convnext_tiny
    python -m kdjax train --config examples/teacher_timm.py --workdir runs/from_timm

The maps are named "features1" (the finest) and so on. `model.feature_info` has their channels and
strides. The config trains on the quickstart's shapes.
"""

import functools
import os
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config

from kdjax import recipes
from kdjax.config import Config, term
from kdjax.interop import TorchTeacher
from kdjax.models import Preprocessing


@functools.cache
def teacher() -> TorchTeacher:
    """Returns the teacher that `config.teacher.checkpoint` names."""
    return teacher_of(timm.create_model(os.environ["TEACHER"], features_only=True, pretrained=True))


def teacher_of(model: Any) -> TorchTeacher:
    """Returns a model of `timm.create_model(..., features_only=True)` as a teacher."""
    values = resolve_model_data_config(model)
    mean, std = (tuple(255 * x for x in values[key]) for key in ("mean", "std"))
    return TorchTeacher(model, forward=features, preprocessing=Preprocessing(mean, std))


def features(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the features [B, C, h, w] of each stage by name."""
    found = model(images)
    # Swin, for example, has channels last.
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        found = [stage.permute(0, 3, 1, 2) for stage in found]
    return {f"features{number}": stage for number, stage in enumerate(found, 1)}


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, with a term on features of stride 32."""
    config = recipes.shapes()
    config.teacher.name = ""  # the checkpoint describes the network
    config.teacher.checkpoint = "teacher_timm:teacher"
    with config.unlocked():
        config.terms.features = term("cwd", student="stage4", teacher="features4", weight=1.0)
    return config
