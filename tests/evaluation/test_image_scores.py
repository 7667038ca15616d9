"""The images to look at: the worst ones, and those whose label may be wrong."""

import numpy as np
import pytest

from kdjax.evaluation.image_scores import COUNT, ImageScores


def maps(labels, predictions, references=None):
    found = {
        "label": np.stack(labels),
        "prediction": np.stack(predictions),
        "size": np.array([label.shape for label in labels]),
        "index": np.arange(len(labels)),
    }
    return found | ({"reference": np.stack(references)} if references is not None else {})


def test_the_worst_images_are_those_with_the_lowest_iou_of_their_classes():
    label = np.array([[0, 0, 1, 1], [0, 0, 1, 255]])
    right, half = label % 255, np.array([[0, 0, 0, 0], [0, 0, 1, 2]])
    wrong = np.full_like(label, 2)
    scores = ImageScores(3)
    scores.add(maps([label] * 3, [right, half, wrong]))
    assert [score.index for score in scores.worst] == [2, 1, 0]
    # Class 2 is predicted on an ignored pixel alone, and is not in the label.
    assert [score.miou for score in scores.worst] == pytest.approx([0, (4 / 6 + 1 / 3) / 2, 1])
    assert scores.disputed == []
    assert [*scores.worst[0].predictions] == ["student"]


def test_labels_against_which_both_networks_agree():
    label = np.zeros((2, 4), int)
    label[0, 0] = 255
    both = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])  # 2 of 7 labeled pixels
    scores = ImageScores(2)
    scores.add(maps([label, label], [both, both], [both, label % 255]))
    (found,) = scores.disputed
    assert (found.index, found.disputed) == (0, pytest.approx(2 / 7))
    assert [*found.predictions] == ["teacher", "student"]
    names = ["a", "b"]
    assert scores.as_dict(names)["disputed"] == [
        {"index": 0, "name": "a", "miou": pytest.approx(5 / 7), "disputed": pytest.approx(2 / 7)}
    ]


def test_only_the_first_few_are_kept_whatever_the_batches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (20, 6, 8))
    predictions = np.where(rng.random(labels.shape) < rng.random((20, 1, 1)), labels, 1)
    every = maps([*labels], [*predictions], [*predictions])
    at_once, by_two = ImageScores(3), ImageScores(3)
    at_once.add(every)
    for start in reversed(range(0, 20, 2)):
        by_two.add({key: value[start : start + 2] for key, value in every.items()})
    for kind in ("worst", "disputed"):
        first, second = (getattr(scores, kind) for scores in (at_once, by_two))
        assert len(first) == COUNT
        assert [score.index for score in first] == [score.index for score in second]


def test_padding_blank_images_and_images_without_labels_are_left_out():
    label = np.full((3, 4, 5), 255)
    label[0, :2, :3] = 0
    found = maps([*label], [*np.zeros_like(label)])
    found["size"], found["index"] = np.array([(2, 3), (4, 5), (0, 0)]), np.array([7, 3, -1])
    scores = ImageScores(2)
    scores.add(found)
    (only,) = scores.worst
    assert (only.index, only.miou) == (7, 1)
    assert only.predictions["student"].shape == (2, 3)
