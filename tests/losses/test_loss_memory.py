"""Memory, as the compiler plans it: these programs are compiled and not run."""

import functools

import jax
import jax.numpy as jnp
import pytest

from kdjax import losses
from kdjax.planning.collectives import parse
from tools.hlo import float32_arrays, reads


def compile_gradient(loss, *arguments):
    return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()


def megabytes(compiled):
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def maps(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("similarity", "limit"), [("cosine", 100), ("softmax", 300)])
def test_pfs_of_a_cityscapes_crop(similarity, limit, dtype):
    features = maps(1, 64, 128, 512, dtype=dtype)
    loss = functools.partial(losses.pfs, similarity=similarity)
    compiled = compile_gradient(lambda s, t: loss(s, t).mean(), features, features)
    assert megabytes(compiled) < limit
    assert "8192,8192]" not in str(compiled.as_text())


def test_cirkd_of_sixteen_cityscapes_crops():
    """The widths of the authors' networks; the tables would be 69 GB a network."""
    student, teacher = maps(16, 64, 128, 128), maps(16, 64, 128, 256)
    compiled = compile_gradient(lambda s, t: losses.cirkd_minibatch(s, t).mean(), student, teacher)
    assert megabytes(compiled) < 600


@pytest.mark.parametrize("similarity", ["cosine", "softmax"])
def test_pfs_takes_memory_in_proportion_to_the_pixels(similarity):
    loss = functools.partial(losses.pfs, similarity=similarity)
    small, large = (
        megabytes(compile_gradient(lambda s, t: loss(s, t).mean(), x, x))
        for x in (maps(1, 64, 128, 64), maps(1, 256, 512, 64))
    )
    assert large < 20 * small + 50
    assert large < 300


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampled_cross_entropy_takes_a_tenth_of_doing_the_two_apart(align_corners):
    logits, labels = maps(4, 64, 64, 150), maps(4, 512, 512, dtype=jnp.int32)

    def apart(logits, labels):
        resized = jax.image.resize(logits, (4, 512, 512, 150), "bilinear")
        return losses.cross_entropy(resized, labels).mean()

    def together(logits, labels):
        loss = functools.partial(losses.upsampled_cross_entropy, align_corners=align_corners)
        return loss(logits, labels).mean()

    naive, banded = (megabytes(compile_gradient(f, logits, labels)) for f in (apart, together))
    assert banded < naive / 10


@pytest.mark.parametrize("loss", [losses.pixelwise_kl, losses.cwd])
def test_nothing_but_the_inputs_is_kept_for_the_backward_pass(loss):
    half = maps(2, 32, 32, 64, dtype=jnp.bfloat16)
    _, residuals = jax.eval_shape(lambda s, t: jax.vjp(lambda s: loss(s, t), s), half, half)
    large = [x for x in jax.tree.leaves(residuals) if x.size >= half.size]
    assert {x.dtype for x in large} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("loss", [losses.pixelwise_kl, losses.cwd, losses.gap_weighted_kl])
def test_half_precision_is_reduced_without_a_float32_copy(loss):
    half, labels = maps(4, 64, 128, 64, dtype=jnp.bfloat16), maps(4, 64, 128, dtype=jnp.int32)
    labels = (labels,) if loss is losses.gap_weighted_kl else ()

    def mean(*arguments):
        return loss(*arguments).mean()

    # The maxima and the sums, and what the two networks give to the true class; the gradient.
    forward = 3 if loss is losses.gap_weighted_kl else 2
    for function, passes in ((mean, forward), (jax.value_and_grad(mean), forward + 1)):
        compiled = jax.jit(function).lower(half, half, *labels).compile()
        assert megabytes(compiled) < 4 * half.size / 1e6 / 2
        program, entry = parse(compiled.as_text())
        assert float32_arrays(program, entry, half.size) == 0
        assert [reads(program, entry, argument) for argument in (0, 1)] == [passes, passes]
