"""Compares the scores with torchmetrics, which .ci/run installs."""

import numpy as np
import pytest

from kdjax.evaluation.evaluator import Scores, confusion_matrix

CLASSES = 5


@pytest.mark.torch
@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 1, 2, 3, 4, 255], [0, 1, 2, 3, 4]),
        ([0, 1, 3, 255], [0, 1, 3]),  # two classes are in neither
        ([0, 1, 255], [0, 1, 4]),  # one is predicted and never labeled
        ([0, 1, 2], [0]),
        ([3], [3]),  # images of one class
        ([3, 255], [2]),
    ],
)
def test_miou_is_that_of_torchmetrics(labels, predictions):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    reason = "torchmetrics is not installed: pip install torchmetrics==1.9.0"
    classification = pytest.importorskip("torchmetrics.classification", reason=reason)
    rng = np.random.default_rng(0)
    labels, predictions = rng.choice(labels, (3, 33, 47)), rng.choice(predictions, (3, 33, 47))
    scores = Scores(np.asarray(confusion_matrix(predictions, labels, CLASSES)))
    theirs = {}
    for average in ("macro", "none"):
        metric = classification.MulticlassJaccardIndex(CLASSES, ignore_index=255, average=average)
        for index in range(3):  # as batches, one image each
            metric.update(torch.tensor(predictions[index]), torch.tensor(labels[index]))
        theirs[average] = metric.compute().numpy()
    assert scores.miou == pytest.approx(float(theirs["macro"]), abs=1e-6)
    # torchmetrics reports 0 for an absent class.
    np.testing.assert_allclose(np.nan_to_num(scores.iou), theirs["none"], atol=1e-6)
