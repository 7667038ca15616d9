"""One device against eight on every shape of mesh: the same losses, gradients and states.

One method, which has an adapter, is compared where parameters are split. In CI each is, and all of
them at once on every mesh, as terms of one step of which each is compared.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import thorough
import tiny_run
from flax import nnx

from kdjax import models
from kdjax.distillation import Distiller
from kdjax.models.adapters import NNXNetwork, traced_rngs
from kdjax.models.batch_norm import BatchNorm, group_batch_norm
from kdjax.models.network import trace_maps
from kdjax.models.outputs import IMAGENET
from kdjax.planning.program import make_program
from kdjax.recipes import METHODS
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.optimizer import OptimizerOptions, make_optimizer
from kdjax.training.sharding import MeshOptions, Placement
from kdjax.training.step import Objective, PreprocessedNetwork, create_state, make_train_step
from kdjax.utils.errors import UserError

MESHES = {
    "data": MeshOptions(data=8),
    "fsdp": MeshOptions(data=4, fsdp=2),
    "space": MeshOptions(data=2, space=4),
}
STEPS = 10
CLASSES = 4
_STAGES = ("stage3", "stage4")
# Rings that overflow in a few steps, and what maps that are as small as here allow. What is stored
# in half precision may be rounded elsewhere on another mesh.
SMALL = {
    "af_dcd": {"pool": 1, "patch": 2},
    "cirkd_memory": {"pixels": 256, "regions": 64, "storage": "float32"},
    "mas_kd": {"fitted_until": 0.3},
    "ofd": {"student": _STAGES, "teacher": _STAGES, "divisors": (1.0, 1.0)},
    "skd_pairwise": {"window": 0, "stop_norms": True, "weight": 0.5},  # as alone, once
    # By channels, because the axes of a covariance change with its rounding.
    "standardized_l2": {"standardize": "channel", "fitted_over": 3},
}
# Maps are too small for a discriminator, which test_skd_and_mas_kd.py has over devices.
ALONE = {
    method: {
        name: {**term, **SMALL.get(term["loss"], {})}
        for name, term in terms.items()
        if term["loss"] != "holistic"
    }
    for method, terms in METHODS.items()
}
# A term that two methods share is there once. These look at one image and learn nothing, and
# test_every_loss.py spreads them over a mesh; and MGD is a part of Af-DCD.
SPARED = ("attention_transfer", "bpkd", "dist_inter", "dkd", "dsd_pairs", "ifvd", "wsld", "mgd")
TOGETHER = {
    repr(term): (f"{method}_{name}", term)
    for method, terms in ALONE.items()
    for name, term in terms.items()
    if term["loss"] not in SPARED
}
TOGETHER = dict(TOGETHER.values())
COMPARED = {"together": TOGETHER} | ALONE


def recorded_gradients():
    """Keeps the gradients of a step in the optimizer's state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradients, state, params=None: (gradients, gradients),
    )


def batches():
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {
            "image": generator.integers(0, 256, (8, 32, 16, 3), np.uint8),
            "label": generator.choice([*range(CLASSES), 255], (8, 32, 16)).astype(np.uint8),
        }


@functools.cache
def program(method, mesh):
    """Returns the placement, the compiled step of a method, and the states of both networks."""
    create = functools.partial(models.create, "tiny", num_classes=CLASSES, auxiliary=False)
    student = create(width=16, rngs=nnx.Rngs(0))
    teacher = create(width=24, rngs=nnx.Rngs(1))
    distiller = Distiller(
        COMPARED[method],
        student=trace_maps(*NNXNetwork.of(student), (32, 16), train=True),
        teacher=trace_maps(*NNXNetwork.of(teacher), (32, 16), train=False),
    )
    # Where a run goes must not depend on its rounding: gradients differ by 1e-6 of their size, and
    # at a high rate a random network would double that every few steps.
    settings = OptimizerOptions(learning_rate=1e-3)
    optimizer = optax.chain(recorded_gradients(), make_optimizer(settings, STEPS))
    (network, variables), (frozen, teacher_state) = map(NNXNetwork.of, (student, teacher))
    state = create_state(
        variables,
        distiller.init(jax.random.key(0)),
        optimizer,
        ema=True,
    )
    step = make_train_step(
        PreprocessedNetwork(network, IMAGENET),
        PreprocessedNetwork(frozen, IMAGENET),
        Objective(1.0, 0.0, distiller),
        optimizer,
        optax.constant_schedule(settings.learning_rate),
        steps=STEPS,
        ema_decay=0.9,
    )
    placement = Placement(devices=jax.devices()[:1]) if mesh == "one" else Placement(MESHES[mesh])
    state, teacher_state = placement.put_state((state, teacher_state))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    # Not as in other tests: at XLA's level 0 skd_pairwise has gradients that are not finite.
    options = {"xla_backend_optimization_level": 1}
    step = jax.jit(step, out_shardings=(shardings, placement.replicated), compiler_options=options)
    return placement, step, state, teacher_state


def steps(method, mesh, *, start=None):
    """Yields metrics, gradients, and state of every step of a run from the state `start`."""
    placement, step, state, teacher_state = program(method, mesh)
    state = start or state
    for batch in list(batches())[int(state.step) :]:
        state, metrics = step(state, teacher_state, placement.put_batch(batch))
        values = {key: float(value) for key, value in metrics.items()}
        yield values, jax.device_get(state.opt_state[0]), state


@functools.cache
def whole(method, mesh):
    return list(steps(method, mesh))


def assert_close(metrics, others, where):
    assert metrics["loss"] == pytest.approx(others["loss"], rel=1e-5), where
    # Terms near 0 are differences of numbers of size 1, which are rounded.
    assert metrics == pytest.approx(others, rel=1e-5, abs=2e-6), where


def distance(tree, other):
    """Returns the norm of the difference of all arrays, relative to the norm of the second."""
    tree, other = jax.device_get((tree, other))
    apart = jax.tree.map(lambda a, b: np.sum(np.square(np.float64(a) - b)), tree, other)
    size = jax.tree.map(lambda b: np.sum(np.square(np.float64(b))), other)
    # Margins of maps without a value below zero are zero.
    whole = sum(jax.tree.leaves(size)) or 1.0
    return math.sqrt(sum(jax.tree.leaves(apart)) / whole)


EXAMPLE = "cwd_features"


@pytest.mark.parametrize(
    ("method", "mesh"),
    thorough.after(
        1,
        [
            (EXAMPLE, "fsdp"),
            *((method, "fsdp") for method in ALONE if method != EXAMPLE),
            *(("together", mesh) for mesh in MESHES),
        ],
    ),
)
def test_a_mesh_computes_what_one_device_does(method, mesh):
    run, expected_run = whole(method, mesh), whole(method, "one")
    for step, (mine, theirs) in enumerate(zip(run, expected_run, strict=True), start=1):
        assert_close(mine[0], theirs[0], f"step {step}")
        assert distance(mine[1], theirs[1]) < 1e-5, f"step {step}"
    state, expected = run[-1][2], expected_run[-1][2]
    for part in ("params", "model_state", "ema"):
        assert distance(getattr(state, part), getattr(expected, part)) < 1e-5, part
    if expected.terms:
        assert distance(state.terms, expected.terms) < 1e-5


def test_memory_of_what_lasts_falls_by_the_fsdp_factor():
    student = nnx.eval_shape(
        lambda: models.create("pspnet_r18", num_classes=19, width=64, rngs=traced_rngs(0))
    )
    _, params, _ = nnx.split(student, nnx.Param, ...)
    optimizer = make_optimizer(OptimizerOptions(), STEPS)
    state = (params, jax.eval_shape(optimizer.init, params))

    def device_bytes(placement):
        shardings = placement.state_shardings(state)
        parts = jax.tree.map(lambda leaf, s: math.prod(s.shard_shape(leaf.shape)), state, shardings)
        return 4 * sum(jax.tree.leaves(parts))

    whole = device_bytes(Placement())
    for parts in (2, 4, 8):
        split = device_bytes(Placement(MeshOptions(fsdp=parts)))
        # Scales and biases stay whole: 0.2 % of it.
        assert whole / parts <= split < whole / parts + 0.002 * whole


@pytest.mark.parametrize("method", thorough.after(1, [EXAMPLE, "together"]))
def test_a_run_continues_on_another_mesh(method, tmp_path):
    written = whole(method, "fsdp")
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(5, written[4][2])
    checkpoints.close()
    for mesh in ("space", "one"):
        target = program(method, mesh)[2]
        found, state, remarks = Checkpoints(tmp_path, {}).restore_latest(target)
        assert (found, remarks) == (5, [])
        # The restored state is exact. The next steps differ by rounding.
        jax.tree.map(np.testing.assert_array_equal, state, written[4][2])
        assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, state, target))
        rest = list(steps(method, mesh, start=state))
        assert len(rest) == STEPS - 5
        for mine, theirs in zip(rest, written[5:], strict=True):
            assert_close(mine[0], theirs[0], mesh)
            assert distance(mine[2].params, theirs[2].params) < 1e-5


def test_batch_norm_per_device():
    norm = BatchNorm(2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    group_batch_norm(nnx.List([norm]), 2)
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype(np.float32)
    out = norm(jnp.asarray(x), use_running_average=False)
    halves = x.reshape(2, -1, 2)
    expected = (halves - halves.mean(1, keepdims=True)) / np.sqrt(
        halves.var(1, keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(out, expected.reshape(x.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.mean[...], 0.1 * halves.mean(1).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        norm.var[...], 0.9 + 0.1 * halves.var(1, ddof=1).mean(0), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="a batch of 3 cannot be cut into 2 groups"):
        norm(jnp.asarray(x[:3]), use_running_average=False)


@pytest.mark.parametrize(("groups", "asks"), [(1, True), (8, False)])
def test_batch_norm_per_device_asks_no_other_device(groups, asks):
    norm = BatchNorm(2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    group_batch_norm(nnx.List([norm]), groups)
    graphdef, weights = nnx.split(norm)

    @jax.jit
    def normalized(weights, x):
        return nnx.merge(graphdef, weights, copy=True)(x, use_running_average=False)

    batch = Placement().put_batch({"x": np.zeros((8, 4, 4, 2), np.float32)})["x"]
    assert ("all-reduce" in normalized.lower(weights, batch).compile().as_text()) == asks


@pytest.mark.parametrize("devices", [4, 8])
def test_a_step_with_batch_norm_per_device_goes_with_any_number_of_devices(devices):
    config = tiny_run.get_config()
    config.student.batch_norm = "per_device"
    program = make_program(config, jax.devices()[:devices], num_classes=3, batch_size=8)
    state, frozen, batch = program.values()
    _, metrics = jax.jit(program.step)(state, frozen, batch)
    assert np.isfinite(float(metrics["loss"]))


def test_a_micro_batch_must_split_over_the_devices():
    config = tiny_run.get_config()
    config.optimizer.accumulate = 4
    devices, asked = jax.devices()[:4], {"num_classes": 3}
    message = (
        r"config.data.batch_size is 8; it must be a multiple of the 4 devices along .*, times 4 "
        r"\(config.optimizer.accumulate\)"
    )
    with pytest.raises(UserError, match=message):
        make_program(config, devices, batch_size=8, **asked)
    config.student.batch_norm = "per_device"
    assert make_program(config, devices, batch_size=16, **asked).work.step > 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "config.mesh has data 3, fsdp 1, space 1, .* not go with 8 devices"),
        ({"data": -1, "fsdp": 3}, "fsdp 3, space 1, which does not go with 8 devices"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"data": -1, "fsdp": 2, "space": 2}, "give fsdp or space, not both"),
        ({"data": 8, "space": 0}, "space is 0; it must be positive, or -1 for all"),
    ],
)
def test_meshes_that_there_cannot_be(sizes, message):
    with pytest.raises(UserError, match=message):
        Placement(MeshOptions(**sizes))


def test_what_a_mesh_says_of_itself():
    placement = Placement(MeshOptions(space=2))
    assert placement.describe() == "data 4 x fsdp 1 x space 2, 8 devices"
    assert placement.batch_shards == 4
    with pytest.raises(UserError, match=r"batch_size is 6; it must be a multiple of the 4 devices"):
        placement.check_batch_size("data.batch_size", 6)
    # Rows that cannot be split evenly stay whole.
    batch = placement.put_batch({"even": np.zeros((4, 6, 3)), "odd": np.zeros((4, 5, 3))})
    shapes = {key: value.sharding.shard_shape(value.shape) for key, value in batch.items()}
    assert shapes == {"even": (1, 3, 3), "odd": (1, 5, 3)}


def test_a_batch_must_split_over_the_devices():
    with pytest.raises(UserError, match=r"config.data.batch_size is 12; .* the 8 devices"):
        Placement().check_batch_size("data.batch_size", 12)
