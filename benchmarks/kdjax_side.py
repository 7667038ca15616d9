"""kdjax's side of `benchmarks.train_step`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from benchmarks.work import Work
from kdjax import config as configuration
from kdjax import models
from kdjax.experiment.build import build_distiller, build_state, build_step
from kdjax.models import NNXNetwork, scores_of
from kdjax.models.outputs import IMAGENET
from kdjax.training.step import PreprocessedNetwork
from kdjax.utils.environment import compiler_options


class Side:
    """A training with new weights, and without dropout, so that both sides compute the same."""

    def __init__(self, work: Work):
        self.work = work
        self.student = _network(work, work.student, work.student_width, 0)
        self.teacher = None
        if work.distilled:
            self.teacher = _network(work, work.teacher, work.teacher_width, 1)
        self.start()

    def start(self) -> None:
        """Begins the training with the current weights."""
        config = configuration.default()
        config.steps = self.work.steps
        config.data.crop_size = self.work.crop
        config.optimizer.name = self.work.optimizer
        with config.unlocked():
            config.terms = ConfigDict(self.work.terms)
        options = configuration.read(config)
        student, variables = NNXNetwork.of(self.student)
        teacher_network = None if self.teacher is None else NNXNetwork.of(self.teacher)
        distiller = build_distiller(
            options, (student, variables), teacher_network, num_classes=self.student.num_classes
        )
        self.state = build_state(options, variables, distiller)
        network, self.frozen = teacher_network or (None, None)
        teacher = PreprocessedNetwork(network, IMAGENET) if network else None
        train_step = build_step(options, PreprocessedNetwork(student, IMAGENET), teacher, distiller)

        def with_unread_teacher(state: Any, frozen: Any, batch: Any) -> Any:
            assert network is not None
            seen = IMAGENET(batch["image"])
            output, _ = network.apply(frozen, seen, train=False, key=None)
            state, metrics = train_step(state, frozen, batch)
            # XLA removes results that nobody reads.
            return state, metrics | {"teacher_logits": jnp.mean(scores_of(output))}

        unread = teacher is not None and distiller is None
        self._step = jax.jit(
            with_unread_teacher if unread else train_step,
            donate_argnums=0,
            compiler_options=compiler_options(jax.default_backend()),
        )

    @property
    def on_gpu(self) -> bool:
        return jax.default_backend() == "gpu"

    def step(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """One step; returns without waiting for a GPU."""
        self.state, metrics = self._step(self.state, self.frozen, dict(batch))
        return metrics

    def wait(self) -> None:
        """Returns when the device has done all steps."""
        jax.block_until_ready(self.state)

    def device_peak(self) -> int:
        """Returns the peak of the arrays' bytes on a GPU."""
        return (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"]


def _network(work: Work, name: str, width: int, seed: int) -> models.Segmenter:
    net = models.create(
        name,
        num_classes=work.classes,
        width=width,
        auxiliary=seed == 0 and name.startswith("pspnet"),
        dtype=work.dtype,
        rngs=nnx.Rngs(seed),
    )
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.Dropout):
            module.rate = 0.0
    return net
