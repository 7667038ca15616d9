"""The confusion matrix and the scores from it, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import models
from kdjax.evaluation import evaluator
from kdjax.evaluation.evaluator import Scores, confusion_matrix
from kdjax.experiment.scores import Evaluation, SplitScores
from kdjax.models import NNXNetwork
from kdjax.models.outputs import IMAGENET
from kdjax.utils.bands import RGB

RNG = np.random.default_rng(0)


def reference_confusion(predictions, labels, num_classes):
    matrix = np.zeros((num_classes, num_classes), int)
    for predicted, label in zip(predictions.ravel(), labels.ravel(), strict=True):
        if label < num_classes:
            matrix[label, predicted] += 1
    return matrix


def test_confusion_matrix_counts_labeled_pixels_exactly():
    labels = RNG.choice([0, 1, 2, 3, 255], (2, 9, 7)).astype(np.uint8)
    predictions = RNG.integers(0, 4, labels.shape)
    found = jax.jit(confusion_matrix, static_argnums=2)(predictions, labels, 4)
    np.testing.assert_array_equal(found, reference_confusion(predictions, labels, 4))
    assert found.dtype == jnp.int32


def test_scores_by_hand():
    # Class 2 is in neither labels nor predictions; class 3 is predicted but never right.
    confusion = np.array([[6, 2, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = Scores(confusion)
    np.testing.assert_allclose(scores.iou, [6 / 9, 0, np.nan, 0])
    assert scores.miou == pytest.approx((6 / 9) / 3)
    assert scores.pixel_accuracy == 0.6
    assert scores.as_dict()["iou"][2] is None


def test_a_split_without_labels_scores_nan():
    scores = Scores(np.zeros((3, 3), int))
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)


class Fixed:
    """Replaces a network: its weights are the predictions."""

    def __call__(self, state, images, sizes):
        return jnp.asarray(state)[images[:, 0, 0, 0]]


def batches(labels, size):
    for start in range(0, len(labels), size):
        index = np.arange(start, start + size) % len(labels)
        filled = np.arange(start, start + size) < len(labels)
        images = np.broadcast_to(index[:, None, None, None], (size, *labels.shape[1:], 3))
        yield {
            "image": images.astype(np.uint8),
            "label": np.where(filled[:, None, None], labels[index], 255).astype(np.uint8),
            "size": np.full((size, 2), labels.shape[1:], np.int32),
            "index": np.where(filled, index, -1).astype(np.int32),
        }


def test_every_image_counts_once():
    labels = RNG.choice([0, 1, 2, 255], (7, 5, 6)).astype(np.uint8)
    ours, theirs = RNG.integers(0, 3, (2, *labels.shape))
    scores = evaluator.evaluate(
        Fixed(), ours, batches(labels, 4), 3, lambda batch: batch, reference=(Fixed(), theirs)
    )
    np.testing.assert_array_equal(scores.confusion, reference_confusion(ours, labels, 3))
    valid = labels != 255
    assert scores.agreement == pytest.approx((ours == theirs)[valid].mean())
    assert scores.confusion.dtype == np.int64


def test_groups_are_scored_as_if_they_were_alone():
    labels = RNG.choice([0, 1, 2, 255], (7, 5, 6)).astype(np.uint8)
    ours, theirs = RNG.integers(0, 3, (2, *labels.shape))
    groups = {"odd": [1, 3, 5], "last": [6]}
    scores = evaluator.evaluate(
        *(Fixed(), ours, batches(labels, 4), 3, lambda batch: batch),
        reference=(Fixed(), theirs),
        groups=groups,
    )
    np.testing.assert_array_equal(scores.confusion, reference_confusion(ours, labels, 3))
    assert list(scores.groups) == list(groups)
    for name, members in groups.items():
        expected = reference_confusion(ours[members], labels[members], 3)
        np.testing.assert_array_equal(scores.groups[name].confusion, expected)
        agreeing = (ours == theirs)[members][labels[members] != 255].mean()
        assert scores.groups[name].agreement == pytest.approx(agreeing)


def test_the_pixels_of_all_processes_are_counted():
    """The batch on the devices is twice as large as the batch of each of two processes."""
    labels = RNG.choice([0, 1, 2, 255], (8, 5, 6)).astype(np.uint8)
    ours = RNG.integers(0, 3, labels.shape)

    def put(batch):
        return {key: np.concatenate([value, value]) for key, value in batch.items()}

    scores = evaluator.evaluate(Fixed(), ours, batches(labels, 4), 3, put)
    np.testing.assert_array_equal(scores.confusion, 2 * reference_confusion(ours, labels, 3))


def test_a_prediction_is_the_class_of_the_scores_resized_to_the_image():
    net = models.create("tiny", num_classes=3, width=4, rngs=nnx.Rngs(0))
    images = RNG.integers(0, 256, (2, 16, 24, 3), np.uint8)
    logits = net(IMAGENET(images)).logits
    expected = jnp.argmax(jax.image.resize(logits, (2, 16, 24, 3), "bilinear"), axis=-1)
    found = evaluator.Predictor(NNXNetwork.of(net)[0], IMAGENET)(NNXNetwork.of(net)[1], images)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.99
    blocks = jnp.argmax(logits, axis=-1).repeat(8, axis=1).repeat(8, axis=2)
    assert (blocks == expected).mean() < 0.98


def test_confusion_matrix_of_a_sharded_batch():
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    labels = RNG.choice([0, 1, 255], (8, 4, 4)).astype(np.uint8)
    predictions = RNG.integers(0, 2, labels.shape)
    arrays = jax.device_put((predictions, labels), sharding)
    found = jax.jit(evaluator.confusion_matrix, static_argnums=2)(*arrays, 2)
    np.testing.assert_array_equal(found, reference_confusion(predictions, labels, 2))


def test_padding_changes_nothing_far_from_it():
    """The network's receptive field is 30 pixels. Global pooling would change every pixel."""
    net = models.create("tiny", num_classes=5, width=4, rngs=nnx.Rngs(0))
    image = RNG.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    padded = np.full((1, 96, 128, 3), RGB.padding, np.uint8)
    padded[:, :64, :64] = image

    def scores(images):
        logits = net(IMAGENET(jnp.asarray(images))).logits
        return evaluator.resize(logits, images.shape[1:3])

    exact, near = scores(image), scores(padded)[:, :64, :64]
    np.testing.assert_allclose(near[:, :32, :32], exact[:, :32, :32], atol=1e-5)
    assert np.abs(near - exact).max() > 1e-3


@pytest.mark.parametrize(
    ("confusion", "remark"),
    [([[9, 0], [0, 0]], " (only 1 of 2 classes occurs)"), ([[9, 1], [0, 0]], ""), ([[9]], "")],
)
def test_a_mean_over_a_single_class_is_marked(confusion, remark):
    scores = Scores(np.array(confusion))
    iou = {f"class {number}": float(value) for number, value in enumerate(scores.iou)}
    evaluation = Evaluation(
        split="val", shapes=1, miou=scores.miou, pixel_accuracy=scores.pixel_accuracy, iou=iou
    )
    assert f"mIoU {100 * scores.miou:.2f} %{remark}, pixel accuracy" in str(evaluation)
    assert f"<th>mIoU{remark}</th>" in evaluation._repr_html_()


def test_a_set_of_one_object_has_its_precision_and_recall():
    scores = Scores(np.array([[80, 5], [10, 5]]))
    np.testing.assert_allclose(scores.precision, [80 / 90, 0.5])
    np.testing.assert_allclose(scores.recall, [80 / 85, 5 / 15])
    assert scores.as_dict()["recall"] == pytest.approx([80 / 85, 5 / 15])
    assert "recall" not in Scores(np.eye(3, dtype=int)).as_dict()
    found = SplitScores.of(scores.as_dict(), ["background", "leaf"])
    evaluation = Evaluation(**vars(found), split="val", shapes=1)
    assert "precision of leaf 50.00 %, recall of leaf 33.33 %, IoU of leaf 25.00 %" in str(
        evaluation
    )
    assert "<th>recall of leaf</th>" in evaluation._repr_html_()
    assert evaluation.to_dict()["precision"]["leaf"] == 0.5
