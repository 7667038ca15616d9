"""Compares the views of an image with plain NumPy. Padding and batches change nothing."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from absl import flags
from absl.testing import flagsaver
from flax import nnx

from kdjax import models
from kdjax.data.loading.sampling import batch_by_size
from kdjax.evaluation.evaluator import Predictor
from kdjax.evaluation.inference import Inference, class_scores, make_inference, padding, scaled
from kdjax.models import NNXNetwork
from kdjax.models.outputs import IMAGENET
from kdjax.utils.errors import UserError

RNG = np.random.default_rng(0)
CLASSES = 3


@jax.jit
def whole_numbers(images):
    """Replaces a network: exact in float32, and dependent on the position in the window."""
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    left = jnp.pad(images, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    return images * 8 + left * 3 + ((rows * 5 + columns * 3) % 7)[None, :, :, None]


def slide_reference(net, image, window, stride):
    """Translates mmsegmentation's `slide_inference` line by line, for one image [H, W, 3]."""
    (h_img, w_img), (h_crop, w_crop) = image.shape[:2], window
    h_grids = max(h_img - h_crop + stride[0] - 1, 0) // stride[0] + 1
    w_grids = max(w_img - w_crop + stride[1] - 1, 0) // stride[1] + 1
    total = np.zeros((h_img, w_img, CLASSES), np.float32)
    count = np.zeros((h_img, w_img, 1), np.float32)
    for h_idx, w_idx in itertools.product(range(h_grids), range(w_grids)):
        y2 = min(h_idx * stride[0] + h_crop, h_img)
        x2 = min(w_idx * stride[1] + w_crop, w_img)
        y1, x1 = max(y2 - h_crop, 0), max(x2 - w_crop, 0)
        total[y1:y2, x1:x2] += np.asarray(net(image[None, y1:y2, x1:x2]))[0]
        count[y1:y2, x1:x2] += 1
    return total / count


def resize_reference(image, height, width):
    """Resizes bilinearly with half-pixel centers, one pixel at a time."""
    out = np.zeros((height, width, image.shape[2]))
    for y, x in itertools.product(range(height), range(width)):
        for axis_y, weight_y in taps(y, height, image.shape[0]):
            for axis_x, weight_x in taps(x, width, image.shape[1]):
                out[y, x] += weight_y * weight_x * image[axis_y, axis_x]
    return out


def taps(place, wanted, size):
    position = min(max((place + 0.5) * size / wanted - 0.5, 0), size - 1)
    low = int(position)
    return (low, 1 - position + low), (min(low + 1, size - 1), position - low)


def views_reference(net, image, inference):
    """Returns the mean of the softmax of every view's scores, resized to the image."""
    height, width = image.shape[:2]
    total, number = 0, 0
    for scale, mirrored in itertools.product(inference.scales, (False, True)):
        view = resize_reference(image, int(height * scale + 0.5), int(width * scale + 0.5))
        view = (view[:, ::-1] if mirrored else view).astype(np.float32)
        if inference.window:
            scores = slide_reference(net, view, inference.window, inference.stride)
        else:
            scores = np.asarray(net(view[None]))[0]
        scores = resize_reference(scores[:, ::-1] if mirrored else scores, height, width)
        exponents = np.exp(scores - scores.max(-1, keepdims=True))
        total, number = total + exponents / exponents.sum(-1, keepdims=True), number + 1
    return total / number


def padded(images, height, width):
    """Returns images of several sizes in one array, with noise around them, and their sizes."""
    batch = RNG.integers(0, 9, (len(images), height, width, 3)).astype(np.float32)
    for row, image in enumerate(images):
        batch[row, : image.shape[0], : image.shape[1]] = image
    return batch, np.array([image.shape[:2] for image in images], np.int32)


def whole_images(*sizes):
    return [RNG.integers(0, 9, (*size, 3)).astype(np.float32) for size in sizes]


def same_labels_and_scores(found, expected):
    np.testing.assert_array_equal(np.argmax(found, -1), np.argmax(expected, -1))
    # Sums are exact, but XLA may replace a division by a product with the reciprocal.
    np.testing.assert_allclose(found, expected, rtol=2e-7)


@pytest.mark.parametrize("stride", [(6, 8), (4, 5), (1, 7)])
def test_sliding_windows_pixel_for_pixel(stride):
    # The windows tile the first image, but not the next two. The last one is as large as a window.
    images = whole_images((12, 16), (13, 19), (11, 20), (6, 8))
    batch, sizes = padded(images, 16, 20)
    inference = Inference((6, 8), stride)
    found = np.asarray(class_scores(whole_numbers, jnp.asarray(batch), sizes, inference))
    for row, image in enumerate(images):
        expected = slide_reference(whole_numbers, image, (6, 8), stride)
        same_labels_and_scores(found[row, : len(image), : image.shape[1]], expected)


def test_a_window_is_cut_down_to_a_smaller_image():
    (image,) = whole_images((5, 19))
    found = class_scores(whole_numbers, jnp.asarray(image[None]), None, Inference((6, 8), (4, 5)))
    expected = slide_reference(whole_numbers, image, (5, 8), (4, 5))
    same_labels_and_scores(found[0], expected)


def softened(images):
    return whole_numbers(images) / 32


@pytest.mark.parametrize("slide", thorough.after(1, [False, True]))
def test_scales_and_mirror_images_are_averaged_as_probabilities(slide):
    windows = ((6, 8), (4, 5)) if slide else (None, None)
    inference = Inference(*windows, scales=(0.75, 1.0, 1.5), flip=True)
    sizes = [(12, 16), (13, 19)] if slide else [(13, 19)]
    images = whole_images(*sizes)
    batch, extents = padded(images, 16, 20) if slide else padded(images, 13, 19)
    found = np.asarray(class_scores(softened, jnp.asarray(batch), extents, inference))
    expected = [views_reference(softened, image, inference) for image in images]
    for row, image in enumerate(images):
        inside = found[row, : len(image), : image.shape[1]]
        np.testing.assert_allclose(inside, expected[row], atol=2e-6)
    plain = class_scores(softened, jnp.asarray(images[-1][None]), None, Inference(*windows))
    assert (np.argmax(plain[0], -1) != np.argmax(expected[-1], -1)).any()


def test_a_sharded_padded_batch_gives_what_each_image_gives_alone():
    net = models.create("tiny", num_classes=CLASSES, width=4, rngs=nnx.Rngs(2))
    predictor = Predictor(NNXNetwork.of(net)[0], IMAGENET, Inference((16, 24), (8, 16)))
    sizes = [(30, 40), (32, 33), (24, 38), (31, 35)] * 2
    blocks = [RNG.integers(0, 256, (4, 5, 3), np.uint8) for _ in sizes]
    images = [
        block.repeat(8, 0).repeat(8, 1)[:h, :w] for block, (h, w) in zip(blocks, sizes, strict=True)
    ]
    batch, extents = padded(images, 32, 40)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    arrays = jax.device_put((batch.astype(np.uint8), extents), sharding)
    found = predictor(NNXNetwork.of(net)[1], *arrays)
    assert predictor.shapes == [(8, 16, 24, 3)]  # the network is compiled for windows alone
    assert len(found.sharding.device_set) == 8
    found = np.asarray(found)
    alone = predictor(NNXNetwork.of(net)[1], images[1][None])
    assert len(np.unique(alone)) > 1
    assert (found[1, :32, :33] == alone[0]).mean() > 0.998  # but for ties of rounding


def test_images_that_a_window_does_not_fit_into_are_not_padded():
    sizes = [(30, 40), (33, 40), (30, 15), (31, 15), (31, 16)]
    batches = batch_by_size(enumerate(sizes), 4, pad_to=16, exact_below=(16, 16))
    assert {batch.size: batch.indices for batch in batches} == {
        (32, 48): (0, -1, -1, -1),
        (48, 48): (1, -1, -1, -1),
        (32, 15): (2, 3, -1, -1),
        (32, 16): (4, -1, -1, -1),
    }


@pytest.mark.parametrize("scales", [(1.0,), (0.333, 1.75), (0.75,)])
@pytest.mark.parametrize("side", [7, 512, 513])
def test_padding_is_left_to_images_that_fill_a_window_at_every_scale(scales, side):
    least, _ = Inference((side, side), (1, 1), scales).exact_below
    assert min(scaled(least, scale) for scale in scales) >= side
    assert min(scaled(least - 1, scale) for scale in scales) < side


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (4, 4)}, "go together"),
        ({"window": (4, 4), "stride": (4, 5)}, "not above the window"),
        ({"window": (4, 4), "stride": (0, 4)}, "positive"),
        ({"window": (0, 0), "stride": (1, 1)}, "not above the window"),
        ({"window": (4, 10**12), "stride": (1, 1)}, "a window at most 1073740 pixels"),
        ({"scales": (0.5, 0.0)}, "scale 0: must be positive"),
        ({"scales": (1e9,)}, r"scale 1e\+09: must be positive and at most 10"),
        ({"scales": (float("inf"),)}, "scale inf: must be positive and at most 10"),
        ({"scales": (float("nan"),)}, "scale nan: must be positive and at most 10"),
        ({"scales": (-1.0,)}, "scale -1: must be positive"),
        ({"scales": ()}, "name at least one"),
        ({"scales": (1 / 3,)}, "three decimals"),
        ({"scales": (1.0, 1.0)}, "each once"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Inference(**options)


@pytest.mark.parametrize(
    ("size", "scale", "message"),
    [
        ((24, 60), 0.01, r"at scale 0\.01, 24 x 60 pixels become 0 x 1; a side must have 1 to"),
        ((1, 500_000), 10, r"at scale 10, 1 x 500000 pixels become 10 x 5000000"),
    ],
)
def test_images_without_pixels_at_a_scale_are_refused(size, scale, message):
    inference = Inference(scales=(1.0, scale))
    with pytest.raises(UserError, match=message):
        class_scores(whole_numbers, jnp.zeros((1, *size, 3), jnp.uint8), None, inference)
    inference.check_size((50, 50))


def flags_of(given, crop_size=(64, 96)):
    """Returns the inference and the padding of a command line with these flags."""
    # Imported here, because other commands define flags with the same names.
    evaluate = importlib.import_module("kdjax.cli.evaluate")
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**given):
        given = evaluate._INFERENCE.options()
    pad_to = padding(given["mode"], given.pop("pad_to"), whole=1)
    return make_inference(**given, crop_size=crop_size), pad_to


@pytest.mark.parametrize(
    ("given", "inference", "pad_to"),
    [
        ({}, Inference(), 1),
        (
            {"flip": "true", "scales": "0.5,1", "pad_to": "8"},
            Inference(scales=(0.5, 1), flip=True),
            8,
        ),
        ({"mode": "slide"}, Inference((64, 96), (42, 64)), 64),
        ({"mode": "slide", "window": "9,3", "pad_to": "1"}, Inference((9, 3), (6, 2)), 1),
        ({"mode": "slide", "stride": "5,96"}, Inference((64, 96), (5, 96)), 64),
    ],
)
def test_flags(given, inference, pad_to):
    assert flags_of(given) == (inference, pad_to)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stride": "4,4"}, "--stride is for sliding windows; add --mode slide"),
        (
            {"mode": "slide", "window": "4"},
            r"--window is \(4,\); give height and width, as 512,1024",
        ),
        ({"mode": "slide", "stride": "4,x"}, "--stride is '4,x'; give numbers, as 341,683"),
        ({"mode": "slide"}, "--window is missing: .* give height,width"),
        ({"scales": "0.5,big"}, "--scales is '0.5,big'; give numbers, as 0.5,1.0"),
    ],
)
def test_flags_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message):
        flags_of(given, crop_size=None)
