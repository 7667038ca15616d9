"""Wrong arguments raise errors at trace time, before anything runs."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kdjax import losses

X = jax.ShapeDtypeStruct((2, 4, 5, 6), jnp.float32)
SMALLER = jax.ShapeDtypeStruct((2, 2, 5, 6), jnp.float32)
WIDER = jax.ShapeDtypeStruct((2, 4, 5, 8), jnp.float32)
INTEGER = jax.ShapeDtypeStruct((2, 4, 5, 6), jnp.int32)
Y = jax.ShapeDtypeStruct((2, 4, 5), jnp.int32)
KERNEL = jax.ShapeDtypeStruct((6, 6), jnp.float32)
BIAS = jax.ShapeDtypeStruct((6,), jnp.float32)
COVARIANCE = jax.ShapeDtypeStruct((6, 6), jnp.float32)


def refused(error, message, function, *arguments, **options):
    with pytest.raises(error, match=re.escape(message)):
        jax.eval_shape(lambda *arrays: function(*arrays, **options), *arguments)


ALIKE = [losses.pixelwise_kl, losses.cwd, losses.l2, losses.nfd, losses.dist_inter]
IMITATION = [*ALIKE, losses.pfs, losses.skd_pairwise]
IMITATION = [*IMITATION, losses.attention_transfer, losses.cirkd_minibatch]


class Foreign:
    """An array like one of another library, whose dtype NumPy does not know."""

    shape, ndim, dtype = (2, 4, 5, 6), 4, object()


def test_arrays_of_another_library_are_named():
    name = f"{Foreign.__module__}.Foreign"
    with pytest.raises(TypeError, match=f"^student is a {name}; give a JAX or NumPy array$"):
        losses.cwd(Foreign(), Foreign())
    with pytest.raises(TypeError, match=r"^logits is a builtins\.list; give a JAX or NumPy array$"):
        losses.cross_entropy([1.0], [1])
    with pytest.raises(TypeError, match=f"^labels is a {name}; give a JAX or NumPy array$"):
        losses.cross_entropy(jnp.zeros(X.shape), Foreign())


@pytest.mark.parametrize("function", IMITATION)
def test_maps_that_differ_in_size_are_both_named(function):
    message = "got student [2, 4, 5, 6] and teacher [2, 2, 5, 6]; resize one of the two first"
    refused(ValueError, message, function, X, SMALLER)


@pytest.mark.parametrize("function", ALIKE)
def test_channels_that_differ_name_the_adapter(function):
    message = (
        "the same number of channels, got student [2, 4, 5, 6] and teacher [2, 4, 5, 8]; "
        "add a 1x1 convolution to the student, 6 to 8 channels"
    )
    refused(ValueError, message, function, X, WIDER)


@pytest.mark.parametrize("function", IMITATION)
def test_maps_are_floating_point_and_have_pixels(function):
    refused(TypeError, "student must be floating point, got int32", function, INTEGER, X)
    refused(TypeError, "teacher must be floating point, got int32", function, X, INTEGER)
    flat = jax.ShapeDtypeStruct((5, 6), jnp.float32)
    refused(ValueError, "student must be [..., H, W, C], got [5, 6]", function, flat, flat)
    empty = jax.ShapeDtypeStruct((2, 0, 5, 6), jnp.float32)
    refused(ValueError, "at least one pixel", function, empty, empty)


LABELLED = {
    "cross_entropy": lambda labels: (losses.cross_entropy, X, labels),
    "gap_weighted_kl": lambda labels: (losses.gap_weighted_kl, X, X, labels),
    "dkd": lambda labels: (losses.dkd, X, X, labels),
    "wsld": lambda labels: (losses.wsld, X, X, labels),
    "ifvd": lambda labels: (losses.ifvd, X, WIDER, labels),
    "jml": lambda labels: (losses.jml, X, X, labels),
    "fakd_kl": lambda labels: (losses.fakd_kl, X, KERNEL, BIAS, X, labels, COVARIANCE),
    "fakd_cwd": lambda labels: (losses.fakd_cwd, X, KERNEL, BIAS, X, labels, COVARIANCE),
    "isda_logits": lambda labels: (losses.isda_logits, X, KERNEL, BIAS, labels, COVARIANCE),
    "update": lambda labels: (losses.ClassStatistics.zeros(6, 6).update, X, labels),
}


@pytest.mark.parametrize("call", LABELLED.values(), ids=LABELLED.keys())
def test_labels_are_integers_of_the_size_of_the_map(call, request):
    augmented = "fakd" in request.node.name or "isda" in request.node.name
    options = {"strength": 1.0} if augmented else {}
    refused(TypeError, "labels must be integer class indices, got float32", *call(BIAS), **options)
    for wrong in ((2, 8, 10), (2, 4, 5, 1)):
        labels = jax.ShapeDtypeStruct(wrong, jnp.int32)
        message = "labels must be [2, 4, 5], one per pixel of the"
        refused(ValueError, message, *call(labels), **options)


def test_labels_tell_a_map_whose_channels_come_first():
    message = "one per pixel of the logits, got [2, 5, 6]; the logits [2, 4, 5, 6] seem to have"
    first = jax.ShapeDtypeStruct((2, 5, 6), jnp.int32)
    refused(ValueError, message + " their channels first", losses.cross_entropy, X, first)


def test_upsampled_labels_have_the_batch_of_the_logits():
    function = losses.upsampled_cross_entropy
    message = "labels must be [2, 9, 9], got [3, 9, 9]"
    refused(ValueError, message, function, X, jax.ShapeDtypeStruct((3, 9, 9), jnp.int32))
    refused(ValueError, "labels must be [", function, X, jax.ShapeDtypeStruct((9,), jnp.int32))
    refused(TypeError, "labels must be integer", function, X, BIAS)
    refused(TypeError, "logits must be floating point", function, INTEGER, Y)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_the_temperature_is_positive(temperature):
    message = f"temperature must be a positive number, got {temperature}"
    head = (X, KERNEL, BIAS, X, Y, COVARIANCE)
    for function in (losses.pixelwise_kl, losses.cwd, losses.dist_inter, losses.dist_intra):
        refused(ValueError, message, function, X, X, temperature=temperature)
    refused(ValueError, message, losses.standardized_kl, X, X, temperature=temperature)
    for function in (losses.gap_weighted_kl, losses.dkd, losses.wsld):
        refused(ValueError, message, function, X, X, Y, temperature=temperature)
    refused(ValueError, message, losses.pfs, X, X, similarity="softmax", temperature=temperature)
    refused(ValueError, message, losses.cirkd_minibatch, X, X, temperature=temperature)
    for function in (losses.fakd_kl, losses.fakd_cwd):
        refused(ValueError, message, function, *head, strength=1.0, temperature=temperature)


def test_the_temperature_of_cosines_is_refused_rather_than_unused():
    message = "temperature belongs to similarity='softmax'"
    refused(ValueError, message, losses.pfs, X, X, temperature=2.0)


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_the_strength_is_not_negative(strength):
    message = f"strength must be zero or a positive number, got {strength}"
    for function in (losses.fakd_kl, losses.fakd_cwd):
        head = (X, KERNEL, BIAS, X, Y, COVARIANCE)
        refused(ValueError, message, function, *head, strength=strength)
    head = (X, KERNEL, BIAS, Y, COVARIANCE)
    for function in (losses.isda_logits, losses.isda_cross_entropy):
        refused(ValueError, message, function, *head, strength=strength)


def test_unknown_options_name_the_valid_ones():
    message = "axes must be one of 'space', 'batch_space', 'channel', 'all', got 'pixels'"
    refused(ValueError, message, losses.nfd, X, X, axes="pixels")
    message = "similarity must be one of 'cosine', 'softmax', got 'dot'"
    refused(ValueError, message, losses.pfs, X, X, similarity="dot")
    message = "gap must be one of 'probability', 'cross_entropy', 'total_variation', got 'kl'"
    refused(ValueError, message, losses.gap_weighted_kl, X, X, Y, gap="kl")
    message = "must be one of 'soft', 'pairwise', 'label', 'student', 'none', got 'plugin'"
    head = (X, KERNEL, BIAS, X, Y, COVARIANCE)
    refused(ValueError, message, losses.fakd_kl, *head, strength=1.0, bound="plugin")
    refused(ValueError, "eps must be a positive number, got 0", losses.nfd, X, X, eps=0)
    refused(ValueError, "window must be positive, got 0", losses.skd_pairwise, X, X, window=0)
    refused(ValueError, "pool must be 1 to the size", losses.cirkd_minibatch, X, X, pool=5)


def test_devices_are_named_where_they_matter():
    message = "axis_name and group belong to axes='batch_space'; 'space' normalizes each image by"
    refused(ValueError, message, losses.nfd, X, X, axis_name="data")
    refused(ValueError, message, losses.nfd, X, X, group=1)
    refused(ValueError, message, losses.dead_channels, X, axis_name="data")


@pytest.mark.parametrize("function", [losses.pkd, losses.dist_intra, losses.cirkd_minibatch])
def test_groups_divide_the_batch_and_stay_on_their_device(function):
    for group in (-1, 3):
        message = f"group must divide the images of the batch, got {group} of [2]"
        refused(ValueError, message, function, X, X, group=group)
    message = "group and axis_name exclude each other"
    refused(ValueError, message, function, X, X, group=1, axis_name="data")


def test_labels_of_edges_are_as_large_as_the_map_or_larger():
    message = "labels must have the batch of the maps and their size or more, got [2, 3, 9] for"
    refused(ValueError, message, losses.bpkd, X, X, jax.ShapeDtypeStruct((2, 3, 9), jnp.int32))
    refused(TypeError, "labels must be integer class indices", losses.bpkd, X, X, BIAS)
    refused(ValueError, "window must be a positive number", losses.bpkd, X, X, Y, window=0)
    refused(ValueError, "part must be one of 'body', 'edge'", losses.bpkd, X, X, Y, part="rim")
    refused(ValueError, "target must be one of 'teach", losses.jml, X, X, Y, target="truth")
    refused(ValueError, "smooth must be a positive number", losses.jml, X, X, Y, smooth=0.0)


def test_pairs_of_maps_need_two():
    message = "dsd_pairs compares pairs of maps: give two or more of each network"
    refused(ValueError, message, lambda *maps: losses.dsd_pairs(maps[:1], maps[:1]), X)
    refused(ValueError, message, lambda *maps: losses.dsd_pairs(*maps), X, X)
    message = "student [2, 4, 5, 6] and teacher [2, 2, 5, 6]; resize one of the two first"
    refused(ValueError, message, lambda *maps: losses.dsd_pairs(maps, maps), X, SMALLER)


def test_the_head_fits_together():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def check(message, kernel=KERNEL, bias=BIAS, teacher=X, covariance=COVARIANCE):
        for function in (losses.fakd_kl, losses.fakd_cwd):
            arguments = (X, kernel, bias, teacher, Y, covariance)
            refused(ValueError, message, function, *arguments, strength=1.0)

    check("kernel must be [6, 6], got [4, 6]", shape(4, 6))
    check("bias must be [6], got [5]", bias=shape(5))
    check("teacher_logits must be [2, 4, 5, 6], got [2, 4, 5, 8]", teacher=WIDER)
    check("covariance must be [6, 6] or [6, 6, 6], got [19, 6]", covariance=shape(19, 6))
    check("got [6, 6, 4]", covariance=shape(6, 6, 4))


def test_statistics_of_other_shapes_do_not_merge():
    statistics = losses.ClassStatistics.zeros(6, 6)
    refused(ValueError, "features must be [2, 4, 5, 6], got", statistics.update, WIDER, Y)
    with pytest.raises(ValueError, match=r"covariance must be \[6, 6\], got \[6, 6, 6\]"):
        statistics.merge(losses.ClassStatistics.zeros(6, 6, full=True))


def test_valid_is_a_mask_of_the_shape_of_the_values():
    refused(TypeError, "valid must be boolean, got int32", losses.valid_mean, X, Y)
    mask = jax.ShapeDtypeStruct((2, 4, 5), jnp.bool_)
    refused(ValueError, "valid must be [2, 4, 5, 6], got [2, 4, 5]", losses.valid_mean, X, mask)


def test_the_losses_need_jax_alone():
    script = (
        "import sys; import kdjax.losses; "
        "print([m for m in ('flax', 'optax', 'tensorflow', 'torch', 'ml_collections')"
        " if m in sys.modules], [m for m in sys.modules if m.startswith('kdjax.')"
        " and not m.startswith('kdjax.losses')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] []"
