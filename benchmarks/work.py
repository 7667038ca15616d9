"""The work that two trainers are compared on: networks, images, method. Needs only NumPy."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Work:
    """A training step for both trainers.

    Attributes:
      teacher, teacher_width: network of `kdjax.models`, a PSPNet on a ResNet or `fpn_light` on an
        EfficientNet-Lite, and its width. A PSPNet as the student has an auxiliary head.
      student, student_width: the same of the student.
      classes: number of classes.
      crop: height and width of the images.
      batch_size: images of a step.
      dtype: the type of the networks' arithmetic, "float32" or "bfloat16".
      optimizer: "sgd" or "adamw".
      steps: length of the poly schedule.
      distilled: True if the teacher's forward pass is part of the step, even if unread.
      terms: config entries of the distillation terms by name, as `kdjax.config.term` makes them.
    """

    teacher: str = "pspnet_r101"
    teacher_width: int = 64
    student: str = "pspnet_r18"
    student_width: int = 64
    classes: int = 19
    crop: tuple[int, int] = (512, 1024)
    batch_size: int = 8
    dtype: str = "bfloat16"
    optimizer: str = "sgd"
    steps: int = 40_000
    distilled: bool = True
    terms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Work":
        values = json.loads(text)
        return cls(**values | {"crop": tuple(values["crop"])})

    def batch(self, seed: int) -> dict[str, np.ndarray]:
        """Returns noisy uint8 images with a color per class, and labels with an ignored border."""
        rng = np.random.default_rng(seed)
        height, width = self.crop
        cells = rng.integers(0, self.classes, (self.batch_size, -(-height // 16), -(-width // 16)))
        labels = cells.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
        colors = np.random.default_rng(0).integers(0, 256, (self.classes, 3))
        images = colors[labels] + rng.normal(0, 40, (*labels.shape, 3)).astype(np.float32)
        labels[:, :, :3] = 255
        return {
            "image": np.clip(images, 0, 255).astype(np.uint8),
            "label": labels.astype(np.uint8),
        }


# The work that `benchmarks.train_step` measures on CPUs and on GPUs.
GPU = Work()
CPU = dataclasses.replace(
    GPU, teacher_width=16, student_width=16, crop=(128, 256), batch_size=4, dtype="float32"
)
