"""Augmentation: crops, scales, colors, and labels, compared with plain NumPy."""

import colorsys
import functools

import numpy as np
import pytest
import thorough
from made_up_images import noise

from kdjax.data._tensorflow import tf
from kdjax.data.loading import records
from kdjax.data.loading.augment import augment, distort
from kdjax.data.loading.sampling import AugmentOptions, Draws, draw
from kdjax.data.options import fitted_size
from kdjax.utils.bands import RGB

PLAIN = AugmentOptions(
    (16, 24), scale_range=(1, 1), max_class_share=1, flip=False, photometric=False
)


def options(**changes):
    return AugmentOptions(**{**vars(PLAIN), **changes})


def checkerboard(height, width, cell):
    """Returns an image whose color gives the label: class 3 is pure blue, 6 pure orange."""
    y, x = np.mgrid[:height, :width]
    odd = (y // cell + x // cell) % 2 == 1
    image = np.where(odd[..., None], [230, 140, 20], [20, 40, 200]).astype(np.uint8)
    return image, np.where(odd, 6, 3).astype(np.uint8)


def numbers(chosen, position):
    """Returns the draws of one example."""
    return Draws(*(value[0] for value in draw(chosen, 0, [position])))


def run(image, label, seed, chosen):
    draws = Draws(*map(tf.constant, numbers(chosen, seed)))
    crop = compiled(chosen)(tf.constant(image), tf.constant(label), draws)
    return crop["image"].numpy(), crop["label"].numpy()


@functools.cache
def compiled(chosen):
    """Returns a graph, as in the pipeline, for examples of any size."""
    signature = [
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([None, None], tf.uint8),
        Draws(*(tf.TensorSpec(value.shape, value.dtype) for value in numbers(chosen, 0))),
    ]

    def run(image, label, draws):
        return augment(lambda begin, end: records.whole_window(image), label, draws, chosen)

    return tf.function(run, signature)


def find_crop(whole, crop):
    """Returns all corners at which `crop` occurs in `whole`."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, crop.shape)
    return np.argwhere((windows == crop).all(axis=(-2, -1)))


def numpy_nearest(label, height, width):
    """Scales a label so that a pixel takes the value under its center."""
    rows = np.floor((np.arange(height) + 0.5) * label.shape[0] / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * label.shape[1] / width).astype(int)
    return label[rows][:, columns]


def numpy_bilinear(image, height, width):
    """Scales an image with half-pixel centers, one axis after the other, in float64."""
    result = image.astype(np.float64)
    for axis, target in ((0, height), (1, width)):
        size = result.shape[axis]
        place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        weight = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        low_pixels = np.take(result, low, axis)
        high_pixels = np.take(result, np.minimum(low + 1, size - 1), axis)
        result = low_pixels * (1 - weight) + high_pixels * weight
    return result


def test_a_crop_at_scale_one_is_a_window_of_the_example():
    image, label = noise(40, 50)
    corners = set()
    for seed in range(40):
        crop, crop_label = run(image, label, seed, PLAIN)
        ((top, left),) = find_crop(label, crop_label)
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 24])
        corners.add((top, left))
    assert len(corners) > 30
    tops, lefts = np.array(sorted(corners)).T
    assert tops.min() < 4
    assert tops.max() > 20
    assert lefts.min() < 4
    assert lefts.max() > 22


def test_all_corners_can_be_drawn():
    image, label = noise(17, 25)
    drawn = {tuple(*find_crop(label, run(image, label, seed, PLAIN)[1])) for seed in range(60)}
    assert drawn == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.41, 2.0])
@pytest.mark.parametrize("shape", [(40, 60), (41, 57)])
def test_a_scaled_crop_is_a_window_of_the_scaled_example(scale, shape):
    image, label = noise(*shape)
    height, width = np.round(np.array(shape, np.float32) * np.float32(scale)).astype(int)
    scaled, scaled_label = numpy_bilinear(image, height, width), numpy_nearest(label, height, width)
    for seed in range(4):
        crop, crop_label = run(image, label, seed, options(scale_range=(scale, scale)))
        ((top, left),) = find_crop(scaled_label, crop_label)
        expected = scaled[top : top + 16, left : left + 24]
        # Rounded to whole numbers; a place between two pixels is known to 1 / 2048, half of which
        # in both directions is at most an eighth of a level.
        np.testing.assert_allclose(crop, expected, atol=0.5 + 255 / 2048)


def mmcv_size(height, width, base_size, ratio):
    """Returns height and width as mmcv's RandomResize computes them."""
    long, short = (int(side * ratio) for side in base_size)
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize("ratio", thorough.after(1, [0.77, 0.5, 1.0, 1.9]))
@pytest.mark.parametrize("shape", [(37, 50), (50, 37), (12, 96), (40, 40)])
@pytest.mark.parametrize("base_size", [(160, 40), (52, 52)])
def test_scales_are_of_the_base_size(base_size, shape, ratio):
    image, label = noise(*shape)
    height, width = mmcv_size(*shape, base_size, ratio)
    scaled, scaled_label = numpy_bilinear(image, height, width), numpy_nearest(label, height, width)
    assert fitted_size(shape, base_size) == mmcv_size(*shape, base_size, 1)
    chosen = options(base_size=base_size, scale_range=(ratio, ratio), crop_size=(110, 310))
    crop, crop_label = run(image, label, 0, chosen)
    np.testing.assert_array_equal(crop_label[:height, :width], scaled_label)
    assert (crop_label != 255).sum() == height * width
    np.testing.assert_allclose(crop[:height, :width], scaled, atol=0.5 + 255 / 2048)


@pytest.mark.parametrize("changes", thorough.after(1, [{}, {"base_size": (50_000, 50_000)}]))
def test_a_crop_of_a_very_wide_example_is_a_window_of_it(changes):
    # Places along it, in half pixels of its scaled size, are beyond 32 bits.
    width = 40_000
    image, label = noise(2, width)
    scaled_width = 2 * (width if not changes else 50_000)
    height = round(2 * scaled_width / width)
    scaled = numpy_bilinear(image, height, scaled_width)
    scaled_label = numpy_nearest(label, height, scaled_width)
    for seed in range(4):
        chosen = options(scale_range=(2, 2), crop_size=(height, 24), **changes)
        crop, crop_label = run(image, label, seed, chosen)
        corners = find_crop(scaled_label, crop_label)
        expected = [scaled[:, left : left + 24] for _, left in corners]
        assert min(np.abs(crop - window).max() for window in expected) <= 0.5 + 255 / 2048


def test_scales_fill_their_range():
    image, label = checkerboard(64, 64, 1)
    seen = []
    for seed in range(60):
        chosen = options(crop_size=(140, 140), scale_range=(0.5, 2))
        seen.append((run(image, label, seed, chosen)[1] != 255).any(axis=1).sum() / 64)
    assert 0.5 <= min(seen) < 0.6
    assert 1.9 < max(seen) <= 2
    assert np.mean(seen) == pytest.approx(1.25, abs=0.15)


def test_what_an_image_does_not_cover_is_padded():
    image, label = noise(10, 30)
    crop, crop_label = run(image, label, 3, PLAIN)
    assert (crop[10:] == RGB.padding).all()
    assert (crop_label[10:] == 255).all()
    assert (crop_label[:10] != 255).all()


def test_padding_keeps_its_color_under_distortion():
    image, label = noise(10, 30)
    for seed in range(8):
        crop, _ = run(image, label, seed, options(photometric=True))
        assert (crop[10:] == RGB.padding).all()


def test_half_of_the_examples_are_mirrored():
    image, label = noise(16, 24)
    mirrored = 0
    for seed in range(100):
        crop, crop_label = run(image, label, seed, options(flip=True))
        if (crop == image[:, ::-1]).all():
            np.testing.assert_array_equal(crop_label, label[:, ::-1])
            mirrored += 1
        else:
            np.testing.assert_array_equal(crop, image)
            np.testing.assert_array_equal(crop_label, label)
    assert 35 < mirrored < 65


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_range": (0.5, 2.0)},
        {"flip": True},
        {"photometric": True},
        {"max_class_share": 0.5},
        {"scale_range": (0.5, 2.0), "flip": True, "photometric": True, "max_class_share": 0.75},
    ],
)
def test_image_and_label_stay_aligned(changes):
    image, label = checkerboard(60, 80, 8)
    for seed in range(12):
        crop, crop_label = run(image, label, seed, options(**changes))
        inside = crop_label != 255
        assert set(np.unique(crop_label[inside])) <= {3, 6}
        # Red exceeds blue in every distorted orange, and blue red in every distorted blue; where
        # the image blends two cells, the nearer half decides both color and label.
        signed = crop[..., 0].astype(int) - crop[..., 2]
        blended = np.abs(signed) < 60
        right = (signed > 0) == (crop_label == 6)
        assert right[inside & ~blended].all()
        assert (inside & ~blended).sum() > 0.5 * inside.sum()


def test_distortion_changes_colors_within_its_bounds():
    gray = np.full((16, 24, 3), 100, np.uint8)
    label = np.zeros((16, 24), np.uint8)
    levels = set()
    for seed in range(100):
        crop, _ = run(gray, label, seed, options(photometric=True))
        assert np.ptp(crop) == 0  # gray stays gray
        levels.add(int(crop[0, 0, 0]))
    assert 100 in levels
    # Brightness by 32 at most and contrast by a half at most, in the order of brightness first.
    assert min(levels) >= 34
    assert max(levels) <= 198
    assert len(levels) > 40


def test_distortion_is_that_of_its_definition():
    image, _ = noise(4, 6)
    amounts = {"brightness": 16.0, "contrast": 0.7, "saturation": 1.4, "hue": -0.08}
    changes = {key: np.float32(value) for key, value in amounts.items()}
    draws = numbers(PLAIN, 0)._replace(contrast_first=np.bool_(False), **changes)
    result = distort(tf.constant(image), Draws(*map(tf.constant, draws))).numpy()
    bright = np.clip(image + 16.0, 0, 255) / 255
    for row, column in np.ndindex(4, 6):
        hue, saturation, value = colorsys.rgb_to_hsv(*bright[row, column])
        saturation = min(saturation * 1.4, 1)
        changed = np.array(colorsys.hsv_to_rgb((hue - 0.08) % 1, saturation, value))
        np.testing.assert_allclose(result[row, column], changed * 255 * 0.7, atol=0.51)


def test_crops_full_of_one_class_are_drawn_again():
    image, label = noise(64, 64)
    label[:] = 0
    label[:, 50:] = np.arange(64)[:, None] % 2 + 1

    def filled(share):
        chosen = options(max_class_share=share)
        crops = [run(image, label, seed, chosen)[1] for seed in range(60)]
        return sum(np.bincount(crop.ravel()).max() >= 0.75 * crop.size for crop in crops)

    assert filled(1) > 30
    assert filled(0.75) < 10


def test_a_scene_of_one_class_is_taken_after_all():
    image, label = noise(64, 64)
    _, crop_label = run(image, label * 0, 0, options(max_class_share=0.75))
    assert (crop_label == 0).all()
    _, crop_label = run(image, label * 0 + 255, 0, options(max_class_share=0.75))
    assert (crop_label == 255).all()
