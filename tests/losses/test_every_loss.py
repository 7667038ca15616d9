"""Every loss gives the same finite number under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import thorough
from cases import (
    EVERY,
    FIELD,
    IMITATION,
    SHAPE,
    TOGETHER,
    close,
    compiled,
    few,
    head,
    labels,
    normal,
    seeds,
    with_full_covariance,
)
from hypothesis import given
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import losses

LARGE = (8, *SHAPE[1:])  # an image for each device

every = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY.keys())
imitation = pytest.mark.parametrize("loss", IMITATION.values(), ids=IMITATION.keys())


def batch(seed=0, shape=SHAPE):
    return normal(seed, shape), normal(seed + 1, shape), labels(seed + 2, shape[:-1])


OLDER = [name for name in EVERY if name not in FIELD]
# Operation by operation takes longest to compile, and the field's losses are made of the same.
EAGER = {name.partition("-")[0]: name for name in OLDER}


@pytest.mark.parametrize("name", thorough.after(3, [*EAGER.values()]))
def test_jit_changes_nothing(name):
    close(EVERY[name](*batch()), compiled(EVERY[name])(*batch()).values, 1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", OLDER)
def test_vmap_and_checkpoint_change_nothing(name):
    """One derivative of the other, in a single program."""
    loss, arguments = EVERY[name], batch()
    expected = compiled(loss)(*arguments)
    around = jax.checkpoint(loss)
    if name not in TOGETHER:
        around = jax.vmap(around)
    found = compiled(around)(*arguments)
    close(found.values, expected.values, 1e-6)
    close(found.by_student, expected.by_student)


eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")


@pytest.mark.thorough
@eight
@pytest.mark.parametrize("name", [x for x in EVERY if x not in FIELD or x in TOGETHER])
def test_eight_devices_agree_with_one(name):
    loss, arguments = EVERY[name], batch(shape=LARGE)
    expected = compiled(loss)(*arguments)
    mesh = jax.make_mesh((4, 2), ("batch", "space"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("batch", "space"))
    spread = compiled(loss)(*jax.device_put(arguments, sharding))
    close(spread.values, expected.values, 2e-6)
    close(spread.by_student, expected.by_student)


OVER_A_MESH = EVERY | {
    "fakd_kl-full": with_full_covariance(losses.fakd_kl),
    "fakd_cwd-full": with_full_covariance(losses.fakd_cwd),
}


def all_gradients(losses, *arguments):
    """The terms and the student's gradient of each loss, by name."""

    def mean(student, loss):
        values = loss(student, *arguments[1:])
        return jnp.mean(values), values

    by_student = jax.grad(mean, has_aux=True)
    return {name: by_student(arguments[0], loss) for name, loss in losses.items()}


@eight
@pytest.mark.parametrize(
    ("way", "axis_type"),
    thorough.after(
        1,
        [
            ("shard_map", AxisType.Explicit),
            ("shard_map", AxisType.Auto),
            ("jit", AxisType.Explicit),  # and jit with Auto above
        ],
    ),
)
def test_a_batch_over_a_mesh_agrees_with_one_device(axis_type, way):
    """All losses in one program: those of `jax.make_mesh`'s Explicit axes, and the others."""
    arguments = batch(shape=LARGE)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    over_data = PartitionSpec("data")
    spread = jax.device_put(arguments, NamedSharding(mesh, over_data))
    if way == "jit":
        found = jax.jit(functools.partial(all_gradients, OVER_A_MESH))(*spread)
    else:
        # Losses that normalize over all images need the axes over which the images are split.
        # The field's others look at one image, as those that are here.
        over = {name: loss for name, loss in OVER_A_MESH.items() if name not in FIELD}
        each = functools.partial(all_gradients, over | TOGETHER)
        each = jax.shard_map(each, mesh=mesh, in_specs=over_data, out_specs=over_data)
        found = jax.jit(each)(*spread)
    for name, (slope, values) in found.items():
        expected = compiled(OVER_A_MESH[name])(*arguments)
        # The mean of a device's images is not yet that of all; some values are of all.
        whole = way == "jit" or len(values) > len(expected.values)
        close(np.asarray(values)[: len(expected.values)], expected.values, 1e-6)
        close(slope if whole else slope / 8, expected.by_student, 1e-6)


@eight
def test_groups_over_a_mesh_are_those_of_one_device():
    """Two images a device, as published code has it."""
    arguments = batch(shape=(16, 2, 2, 6))

    @jax.jit
    def grouped(student, teacher, truth):
        return [
            losses.nfd(student, teacher, axes="batch_space", group=2).mean(),
            losses.dist_intra(student, teacher, group=2).mean(),
            losses.cirkd_minibatch(student, teacher, group=2).mean(),
            losses.jml(student, teacher, truth, group=2).mean(),
        ]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    spread = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec("data")))
    close(np.stack(grouped(*spread)), np.stack(grouped(*arguments)), 1e-6)


# Part of their gradient is a constant by definition: a weight, a norm, a distribution.
HELD = ("gap-probability", "gap-cross_entropy", "gap-total_variation", "skd_pairwise")
HELD = (*HELD, "fakd_kl-student", "wsld", "jml")  # and JML has corners


@pytest.mark.thorough
@pytest.mark.parametrize("name", OLDER)
def test_forward_mode_and_second_derivatives(name):
    student, teacher, truth = batch()
    loss, direction = EVERY[name], normal(5)

    @jax.jit
    def derivatives(student, teacher):
        def mean(student, teacher):
            return jnp.mean(loss(student, teacher, truth))

        def slope(student, teacher):
            return jax.jvp(lambda s: mean(s, teacher), (student,), (direction,))[1]

        # Reverse over forward; and forward over reverse, as jax.hessian.
        first, second = jax.value_and_grad(slope, argnums=(0, 1))(student, teacher)
        along = jax.jvp(jax.grad(mean), (student, teacher), (direction, 0 * direction))
        return first, second, along

    first, (by_student, by_teacher), (gradient, along) = derivatives(student, teacher)
    close(first, np.vdot(gradient, direction), 1e-4)
    close(along, by_student, 1e-4)
    np.testing.assert_array_equal(by_teacher, 0.0)
    if name not in HELD:  # the gradient a little further on either side says the same
        step = 1e-2 * direction
        ahead, behind = (
            compiled(loss)(x, teacher, truth) for x in (student + step, student - step)
        )
        close((ahead.by_student - behind.by_student) / 2e-2, along, 2e-2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["cirkd_minibatch", "dkd", "dsd_pairs", "ifvd", "jml", "standardized_kl"]
)
def test_forward_mode_over_reverse(name):
    """Half of the above, for those of the field whose derivatives are not made of others' alone."""
    student, teacher, truth = batch()
    loss, direction = EVERY[name], normal(5)
    slope = jax.grad(lambda s: jnp.mean(loss(s, teacher, truth)))
    gradient, along = jax.jit(lambda s: jax.jvp(slope, (s,), (direction,)))(student)
    step = 1e-2 * direction
    here, ahead, behind = (
        compiled(loss)(x, teacher, truth).by_student
        for x in (student, student + step, student - step)
    )
    close(gradient, here)
    if name not in HELD:
        close((ahead - behind) / 2e-2, along, 2e-2)


@every
def test_duplicating_or_permuting_the_batch_changes_nothing(loss):
    single = batch()
    mean = compiled(loss)(*single).mean
    for order in ((0, 1) * 4, (1, 0, 0, 1, 1, 1, 0, 0)):
        close(compiled(loss)(*(x[[*order]] for x in single)).mean, mean, 2e-6)


# A program each: of the field's losses, only in the half precision that is in use.
IN_HALF = thorough.after(
    len(OLDER),
    [(name, "bfloat16") for name in (*OLDER, *FIELD)] + [(name, "float16") for name in OLDER],
)
IN_ANY = [(name, "float32") for name in EVERY] + IN_HALF


@pytest.mark.parametrize(("name", "dtype"), IN_HALF)
def test_half_precision_is_reduced_in_float32(name, dtype):
    loss, (student, teacher, truth) = EVERY[name], batch()
    half = [x.astype(jnp.dtype(dtype)) for x in (student, teacher)]
    result = compiled(loss)(*half, truth)
    exact = compiled(loss)(*(x.astype(np.float32) for x in half), truth)
    assert result.values.dtype == jnp.float32
    assert result.by_student.dtype == dtype
    close(result.values, exact.values, 1e-6)
    close(result.by_student, exact.by_student, 5e-3)


@pytest.mark.parametrize(("name", "dtype"), IN_ANY)
@pytest.mark.parametrize(
    "extreme", ["huge", "constant", "zero", "single class", "all ignored", "equal"]
)
def test_extremes_are_finite(name, extreme, dtype):
    loss, (student, teacher, truth) = EVERY[name], batch()
    if extreme == "huge":
        student, teacher = 1e4 * np.sign(student), 1e4 * np.sign(teacher)
    elif extreme == "constant":
        student[..., ::2], teacher[..., ::3] = 1e4 / 3, -7.0
    elif extreme == "zero":
        student[:, ::2], teacher[:, :, ::2] = 0.0, 0.0
    elif extreme == "single class":
        truth = np.zeros_like(truth)
    elif extreme == "all ignored":
        truth = np.full_like(truth, 255)
    elif extreme == "equal":
        teacher = student
    given = [x.astype(jnp.dtype(dtype)) for x in (student, teacher)]
    result = compiled(loss)(*given, truth)
    assert np.all(np.isfinite(result.values))
    # NumPy knows no bfloat16 that is finite.
    assert np.all(np.isfinite(np.asarray(result.by_student, np.float32)))


@pytest.mark.parametrize("name", thorough.after(len(OLDER), [*OLDER, *FIELD]))
def test_one_pixel_is_finite(name):
    result = compiled(EVERY[name])(*batch(shape=(2, 1, 1, 6)))
    assert np.all(np.isfinite(result.values))
    assert np.all(np.isfinite(result.by_student))


@every
def test_the_teacher_receives_no_gradient(loss):
    np.testing.assert_array_equal(compiled(loss)(*batch()).by_teacher, 0.0)


@imitation
@few
@given(seeds)
def test_imitation_is_positive_and_zero_only_at_the_teacher(loss, seed):
    student, teacher, truth = batch(seed)
    result = compiled(loss)(student, teacher, truth)
    assert np.all(result.values >= -1e-6)
    assert result.mean > 1e-3
    same = compiled(loss)(teacher, teacher, truth)
    np.testing.assert_allclose(same.mean, 0.0, atol=1e-7)
    if loss is not EVERY["jml"]:  # it has a corner there
        np.testing.assert_allclose(same.by_student, 0.0, atol=1e-7)


# Those that look at one pixel at a time; resizing mixes them.
MASKED = [name for name in EVERY if "cross" in name or "gap" in name or "fakd_kl" in name]
MASKED = [*MASKED, "dkd", "wsld", "ifvd"]
MASKED.remove("upsampled_cross_entropy")


LEVEL_FREE = ("pixelwise_kl", "cwd", "dkd", "wsld", "gap-probability", "bpkd-edge", "cross_entropy")
LEVEL_FREE = (*LEVEL_FREE, "standardized_kl")


@pytest.mark.parametrize("name", LEVEL_FREE)
def test_a_large_common_offset_costs_no_digits(name):
    # Multiples of 1/1024, so that adding 1000 is exact in float32.
    student, teacher = (np.round(1024 * normal(seed)) / 1024 for seed in (0, 1))
    plain, shifted = (
        compiled(EVERY[name])(student + level, teacher + level, labels(2))
        for level in (np.float32(0), np.float32(1000))
    )
    close(shifted.values, plain.values, 5e-7)
    close(shifted.by_student, plain.by_student, 5e-7)


@pytest.mark.parametrize("axis", [-1, (1, 2)])
def test_the_gradient_at_a_large_offset_is_that_of_float64(axis):
    loss = losses.pixelwise_kl if axis == -1 else functools.partial(losses.cwd, temperature=1.0)
    student, teacher = normal(0) + 1000, normal(1) + 1000
    gradient = jax.jit(jax.grad(lambda s: loss(s, teacher).sum()))(student)
    q, p = (reference.softmax(np.float64(x), axis) for x in (student, teacher))
    close(gradient, q - p, 5e-7)


@pytest.mark.parametrize("loss", [EVERY[name] for name in MASKED], ids=MASKED)
def test_ignored_pixels_change_nothing(loss):
    student, teacher, truth = batch()
    ignored = truth == 255
    before = compiled(loss)(student, teacher, truth).values
    np.testing.assert_array_equal(before[ignored], 0.0)
    student[ignored] += 3.0
    teacher[ignored] -= 2.0
    np.testing.assert_array_equal(compiled(loss)(student, teacher, truth).values, before)


@pytest.mark.parametrize("name", [*MASKED, "upsampled_cross_entropy", "jml"])
def test_ignored_pixels_that_are_not_finite_are_left_out(name):
    student, teacher, truth = batch()
    truth[:, 0] = truth[:, 1, :3] = 255  # resized, no other pixel sees the first two cells
    before = compiled(EVERY[name])(student, teacher, truth)
    for value in (np.nan, np.inf, -np.inf):
        # Copies: JAX may still be reading the arrays that it was given before.
        student, teacher = student.copy(), teacher.copy()
        student[:, 0, :2], teacher[:, 0, :2] = value, -value
        after = compiled(EVERY[name])(student, teacher, truth)
        np.testing.assert_array_equal(after.values, before.values)
        np.testing.assert_allclose(after.by_student, before.by_student, atol=1e-9)


TEMPERED = {
    "pixelwise_kl": losses.pixelwise_kl,
    "cwd": losses.cwd,
    "pfs": functools.partial(losses.pfs, similarity="softmax"),
    "cirkd_minibatch": losses.cirkd_minibatch,
    "dist_inter": losses.dist_inter,
    "dist_intra": losses.dist_intra,
    "dkd": lambda s, t, **options: losses.dkd(s, t, labels(2), **options),
    "standardized_kl": losses.standardized_kl,
    "wsld": lambda s, t, **options: losses.wsld(s, t, labels(2), **options),
    "gap": lambda s, t, **options: losses.gap_weighted_kl(s, t, labels(2), **options),
    "fakd_kl": lambda s, t, **options: losses.fakd_kl(
        s, *head(7)[:2], t, labels(2), head(7)[2], strength=1.0, **options
    ),
    "fakd_cwd": lambda s, t, **options: losses.fakd_cwd(
        s, *head(7)[:2], t, labels(2), head(7)[2], strength=1.0, **options
    ),
}


@pytest.mark.parametrize("loss", TEMPERED.values(), ids=TEMPERED.keys())
def test_the_temperature_receives_no_gradient(loss):
    student, teacher, _ = batch()
    by_temperature = jax.grad(lambda t: jnp.mean(loss(student, teacher, temperature=t)))
    assert float(jax.jit(by_temperature)(2.0)) == 0.0
