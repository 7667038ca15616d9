"""PyTorch's side of `benchmarks.train_step`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.torch.lite import LightFPN
from benchmarks.torch.losses import ADAPTED, TAUGHT
from benchmarks.torch.networks import PSPNet
from benchmarks.torch.trainer import Execution, Recipe, Term, Trainer
from benchmarks.work import Work


def _network(name: str, width: int, classes: int, *, auxiliary: bool = True) -> Any:
    if name.startswith("pspnet_r"):
        depth = int(name.removeprefix("pspnet_r"))
        return PSPNet(depth, width, classes, auxiliary=auxiliary, dropout=0.0)
    return LightFPN(name.removeprefix("fpn_light_efficientnet_"), classes)


def supports(work: Work) -> bool:
    """Returns True if the trainer has all losses of the work."""
    return all(entry["loss"] in TAUGHT for entry in work.terms.values())


def best_side(work: Work, *, compiled: bool = False) -> "Side":
    """Returns a side with the best settings for its device, and `torch.compile` if asked for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    execution = Execution.best(device, work.dtype == "bfloat16")
    if compiled:
        execution = dataclasses.replace(execution, compiled=True)
    return Side(work, execution)


class Side:
    """A training with new weights, and without dropout, so that both sides compute the same."""

    def __init__(self, work: Work, execution: Execution):
        torch.manual_seed(0)
        self.execution = execution
        student = _network(work.student, work.student_width, work.classes)
        teacher = None
        if work.distilled:
            teacher = _network(work.teacher, work.teacher_width, work.classes, auxiliary=False)
        terms = [
            Term(
                name,
                entry["loss"],
                entry["weight"],
                entry["student"],
                entry["teacher"],
                entry.get("temperature", 1.0),
            )
            for name, entry in work.terms.items()
        ]
        adapters = {}
        for term in terms:
            assert teacher is not None
            given, wanted = student.channels, teacher.channels
            if term.loss in ADAPTED and term.student == "head" and given != wanted:
                adapters[term.name] = torch.randn(wanted, given, 1, 1) / given**0.5
        recipe = Recipe(work.steps, work.optimizer, terms=terms)
        self.trainer = Trainer(student, teacher, recipe, self.execution, adapters)

    def load(
        self,
        student: Mapping[str, np.ndarray],
        teacher: Mapping[str, np.ndarray],
        adapters: Mapping[str, np.ndarray],
    ) -> None:
        """Sets weights by mmsegmentation's names, and adapters [S, T] by term."""
        assert self.trainer.teacher is not None
        pairs = (self.trainer.student, student), (self.trainer.teacher, teacher)
        for net, weights in pairs:
            # Without the counters of batches, which nothing reads.
            counters = {k: v for k, v in net.state_dict().items() if v.ndim == 0}
            net.load_state_dict(
                {**counters, **{name: torch.tensor(value) for name, value in weights.items()}}
            )
        with torch.no_grad():
            for name, value in adapters.items():
                self.trainer.adapters[name].copy_(torch.tensor(value.T[:, :, None, None]))

    @property
    def on_gpu(self) -> bool:
        return self.execution.device == "cuda"

    def step(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """One step; returns without waiting for a GPU."""
        if self.trainer.teacher is not None and not self.trainer.recipe.terms:
            self.trainer.teach(self.trainer.put(batch["image"]))
        return self.trainer.step(batch)

    def wait(self) -> None:
        """Returns when the device has done all steps."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def device_peak(self) -> int:
        """Returns the peak of the arrays' bytes on a GPU."""
        return torch.cuda.max_memory_allocated()
