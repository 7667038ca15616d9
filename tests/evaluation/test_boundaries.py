"""Boundary IoU and boundary F1 against their definitions, pixel by pixel."""

import numpy as np
import pytest
from scipy import ndimage

from kdjax.evaluation.boundaries import BoundaryScores, band, outline

RNG = np.random.default_rng(0)
NOWHERE = np.zeros((40, 60), bool)


def blobs(seed=0, classes=3, shape=(40, 60)):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    edges = np.quantile(smooth, np.linspace(0, 1, classes + 1)[1:-1])
    return np.digitize(smooth, edges).astype(np.uint8)


def scored(predictions, labels, classes=3):
    scores = BoundaryScores(classes)
    sizes = np.array([label.shape for label in labels])
    scores.add({"prediction": np.stack(predictions), "label": np.stack(labels), "size": sizes})
    return scores


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_band_is_the_mask_minus_its_erosion(width):
    """As `mask_to_boundary` of the authors: 3 x 3, with zeros around the image."""
    mask = blobs() == 1
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
    np.testing.assert_array_equal(band(mask, NOWHERE, width), mask & ~eroded)


def test_boundary_iou_is_the_iou_of_the_bands():
    labels, predictions = [blobs(seed) for seed in range(3)], [blobs(seed) for seed in (1, 1, 2)]
    width = round(0.02 * np.hypot(40, 60))
    both, either = np.zeros((2, 3))
    for label, prediction in zip(labels, predictions, strict=True):
        for c in range(3):
            mine, other = (band(x == c, NOWHERE, width) for x in (prediction, label))
            both[c] += (mine & other).sum()
            either[c] += (mine | other).sum()
    np.testing.assert_allclose(scored(predictions, labels).iou, both / either)


def test_f1_counts_outlines_within_a_distance():
    label, prediction = np.zeros((2, 300, 400), np.uint8)  # a diagonal of 500: 3.75 pixels
    label[100:200, 100:200] = 1
    prediction[100:200, 103:203] = 1
    np.testing.assert_allclose(scored([prediction], [label], 2).f1, [1, 1])
    prediction = np.roll(prediction, 3, axis=1)  # the sides are off, above and below are not
    points = np.argwhere(outline(prediction == 1, np.zeros_like(label, bool)))
    others = np.argwhere(outline(label == 1, np.zeros_like(label, bool)))
    near = np.linalg.norm(points[:, None] - others, axis=-1).min(1) <= 3.75
    # Precision and recall are equal, because one outline is the other one moved.
    np.testing.assert_allclose(scored([prediction], [label], 2).f1[1], near.mean())
    assert 0.4 < near.mean() < 0.6


def test_perfect_predictions_and_classes_that_are_missing():
    label = blobs(classes=2)
    scores = scored([label], [label], 4)
    np.testing.assert_allclose(scores.iou, [1, 1, np.nan, np.nan])
    np.testing.assert_allclose(scores.f1, [1, 1, np.nan, np.nan])
    other = np.full_like(label, 2)
    scores = scored([other], [label], 4)
    np.testing.assert_allclose(scores.iou, [0, 0, 0, np.nan])
    assert (scores.f1[:2] == 0).all()


def test_ignored_pixels_have_no_boundary_and_do_not_count():
    label = blobs()
    holes = ndimage.gaussian_filter(RNG.normal(size=label.shape), 3) > 0.1
    with_holes = np.where(holes, 255, label)
    assert not band(label == 1, holes, 3)[holes].any()
    # A hole in the middle of a class makes no outline.
    whole = np.zeros((40, 60), np.uint8)
    hole = np.zeros((40, 60), bool)
    hole[10:20, 10:20] = True
    assert not outline(whole == 0, hole).any()
    # What is predicted there does not matter.
    noise = np.where(holes, RNG.integers(0, 3, label.shape), blobs(5))
    for name in ("iou", "f1"):
        np.testing.assert_array_equal(
            getattr(scored([noise], [with_holes]), name),
            getattr(scored([blobs(5)], [with_holes]), name),
        )


def test_padding_and_blank_images_do_not_count():
    label, prediction = blobs(0), blobs(1)
    padded = [
        np.pad(x, ((0, 8), (0, 4)), constant_values=v) for x, v in ((prediction, 1), (label, 255))
    ]
    scores = BoundaryScores(3)
    maps = {
        "prediction": np.stack([padded[0], np.zeros_like(padded[0])]),
        "label": np.stack([padded[1], np.full_like(padded[1], 255)]),
        "size": np.array([label.shape, (0, 0)]),
    }
    scores.add(maps)
    np.testing.assert_array_equal(scores.iou, scored([prediction], [label]).iou)
    np.testing.assert_array_equal(scores.f1, scored([prediction], [label]).f1)
