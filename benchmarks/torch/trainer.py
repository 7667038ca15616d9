"""Trains a PSPNet in PyTorch, alone or with a frozen teacher, by the recipe of kdjax."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.torch import losses

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Term:
    """A distillation loss between a map of the student and one of the teacher."""

    name: str
    loss: str  # a name in `losses.TAUGHT`
    weight: float
    student: str = "logits"
    teacher: str = "logits"
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The computation: SGD or AdamW with poly decay, and weight decay on all parameters."""

    steps: int
    optimizer: str = "sgd"  # or "adamw"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    gradient_clip: float = 0.0  # global norm; 0 for none
    auxiliary: float = 0.4
    terms: Sequence[Term] = ()


@dataclasses.dataclass(frozen=True)
class Execution:
    """The execution of a recipe, with the same result up to rounding."""

    device: str = "cpu"
    channels_last: bool = False
    bfloat16: bool = False  # by autocast
    compiled: bool = False  # by torch.compile

    @classmethod
    def best(cls, device: str, bfloat16: bool) -> "Execution":
        """Returns the advice of PyTorch's guides for a GPU. On the CPU, no `torch.compile`.

        Neither was tried against all others: no GPU was at hand, and on one core of a CPU only
        the layouts were compared, between which there was no difference.
        """
        if device == "cuda":
            # Picks the fastest of cuDNN's algorithms for the only shape.
            torch.backends.cudnn.benchmark = True
        return cls(device, channels_last=True, bfloat16=bfloat16, compiled=device == "cuda")


def normalize(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Converts uint8 images [B, H, W, 3] to a network's input [B, 3, H, W]."""
    mean, std = (torch.tensor(x, dtype=dtype, device=images.device) for x in (MEAN, STD))
    return ((images.to(dtype) - mean) / std).permute(0, 3, 1, 2)


def channels_last(net: nn.Module) -> Any:
    """Returns a network for evaluation, with its weights in this layout."""
    place: dict[str, Any] = {"memory_format": torch.channels_last}
    return net.eval().to(**place)


def settle(net: nn.Module, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Sets running statistics to those of the batches. With new ones, scores explode."""
    parameter = next(net.parameters())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over the batches
    net.train()
    with torch.no_grad():
        for batch in batches:
            images = torch.from_numpy(batch["image"]).to(parameter.device)
            net(normalize(images, parameter.dtype))
    net.eval()


class Trainer:
    """A student's training. `step` runs one step.

    Args:
      student: trained in place; returns its maps by name.
      teacher: the frozen teacher, in evaluation mode.
      recipe: the computation.
      execution: its execution.
      adapters: weights [T, S, 1, 1] of the 1x1 convolutions that the terms learn, by term.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        recipe: Recipe,
        execution: Execution,
        adapters: Mapping[str, torch.Tensor] | None = None,
    ):
        self.recipe, self.execution = recipe, execution
        self.dtype = next(student.parameters()).dtype
        layout = torch.channels_last if execution.channels_last else torch.contiguous_format
        place: dict[str, Any] = {"device": execution.device, "memory_format": layout}
        self.student = student.train().to(**place)
        self.teacher = teacher
        if teacher is not None:
            self.teacher = teacher.eval().to(**place)
        self.adapters = nn.ParameterDict(dict(adapters or {})).to(execution.device, self.dtype)
        self.parameters = [*student.parameters(), *self.adapters.parameters()]
        options: dict[str, Any] = {
            "lr": recipe.learning_rate,
            "weight_decay": recipe.weight_decay,
            "fused": True,
        }
        if recipe.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(self.parameters, **options)
        else:
            self.optimizer = torch.optim.SGD(self.parameters, momentum=recipe.momentum, **options)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: (1 - step / recipe.steps) ** recipe.power
        )
        compiled = torch.compile if execution.compiled else lambda function: function
        self._teach, self._measure = compiled(self._teacher_maps), compiled(self._losses)

    def step(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Trains on uint8 images [B, H, W, 3] and labels [B, H, W]; returns loss and parts."""
        images, labels = self.put(batch["image"]), self.put(batch["label"])
        parts = self._measure(images, labels, self.teach(images) if self.recipe.terms else {})
        self.optimizer.zero_grad()
        parts["loss"].backward()
        if self.recipe.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        return {name: value.detach() for name, value in parts.items()}

    def put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.execution.device, non_blocking=True)

    def teach(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the teacher's maps of uint8 images [B, H, W, 3]."""
        with torch.no_grad():
            return self._teach(images)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.execution.device, torch.bfloat16, enabled=self.execution.bfloat16
        )

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        # A view of [B, H, W, 3] as [B, 3, H, W] is what PyTorch calls channels_last.
        images = normalize(images, self.dtype)
        return images if self.execution.channels_last else images.contiguous()

    def _teacher_maps(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.teacher is not None
        with self._autocast():
            return self.teacher(self._input(images))

    def _losses(
        self, images: torch.Tensor, labels: torch.Tensor, target: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        with self._autocast():
            maps = self.student(self._input(images))
        maps, target = (
            {name: value.to(self.dtype) for name, value in x.items()} for x in (maps, target)
        )
        labels = labels.long()
        parts = {"cross_entropy": losses.cross_entropy(maps["logits"], labels)}
        loss = parts["cross_entropy"]
        if "aux_logits" in maps:
            parts["auxiliary_cross_entropy"] = losses.cross_entropy(maps["aux_logits"], labels)
            loss = loss + self.recipe.auxiliary * parts["auxiliary_cross_entropy"]
        for term in self.recipe.terms:
            ours = maps[term.student]
            if term.name in self.adapters:
                ours = nn.functional.conv2d(ours, self.adapters[term.name])
            measure = losses.TAUGHT[term.loss]
            value = measure(ours, target[term.teacher], labels, term.temperature)
            parts[term.name] = value
            loss = loss + term.weight * value
        return {"loss": loss, **parts}
