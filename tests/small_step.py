"""A small distilled step, its state and its batches, for the tests of training."""

import functools

import jax
import numpy as np
from flax import nnx

from kdjax import config as configuration
from kdjax import models
from kdjax.distillation import Distiller
from kdjax.models.adapters import NNXNetwork
from kdjax.models.network import trace_maps
from kdjax.models.outputs import IMAGENET
from kdjax.training.optimizer import OptimizerOptions, learning_rate_schedule, make_optimizer
from kdjax.training.step import Objective, PreprocessedNetwork, create_state, make_train_step

STEPS = 10
RNG = np.random.default_rng(0)


def make_batch(size=8):
    return {
        "image": RNG.integers(0, 256, (size, 16, 16, 3), np.uint8),
        "label": RNG.choice([0, 1, 2, 255], (size, 16, 16)).astype(np.uint8),
    }


def setup(**options):
    """A distilled student with an adapter, all as small as it gets: step, state and teacher.

    The same options give the same function, which JAX then compiles once for all tests of a file.
    """
    step, state, teacher = _made(**options)
    return step, *jax.device_put((state, teacher))


@functools.cache
def _made(*, accumulate=1, ema_decay=0.0, dropout=0.1, **changes):
    options = OptimizerOptions(**changes)
    student = models.create("tiny", num_classes=3, width=4, rngs=nnx.Rngs(0))
    teacher = models.create("tiny", num_classes=3, width=8, rngs=nnx.Rngs(1))
    for head in (student.head, student.auxiliary_head):
        head.classifier.dropout.rate = dropout
    distiller = Distiller(
        {
            "logits_cwd": configuration.term("cwd"),
            "head_cwd": configuration.term("cwd", student="head", teacher="head"),
            "augmented": configuration.term("fakd_kl"),
        },
        student=trace_maps(*NNXNetwork.of(student), (16, 16), train=True),
        teacher=trace_maps(*NNXNetwork.of(teacher), (16, 16), train=False),
    )
    optimizer = make_optimizer(options, STEPS)
    terms = distiller.init(jax.random.key(0))
    (network, variables), (frozen, taught) = map(NNXNetwork.of, (student, teacher))
    state = create_state(variables, terms, optimizer, ema=ema_decay > 0)
    step = make_train_step(
        PreprocessedNetwork(network, IMAGENET),
        PreprocessedNetwork(frozen, IMAGENET),
        Objective(1.0, 0.4, distiller),
        optimizer,
        learning_rate_schedule(options, STEPS),
        steps=STEPS,
        accumulate=accumulate,
        ema_decay=ema_decay,
    )
    # On the host, since a loop gives its state's memory away.
    return step, *jax.device_get((state, taught))
