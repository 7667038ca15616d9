"""Class scores of networks that answer by queries, compared with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.resizing import resize
from kdjax.models import query_logits, query_scores
from kdjax.models.queries import LEAST_SCORE

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import huggingface_models  # noqa: E402  needs both

pytestmark = pytest.mark.torch


def answers(kind):
    """A small model's class logits and mask logits, and its output."""
    with torch.inference_mode():
        output = huggingface_models.model(kind)(**huggingface_models.inputs(kind))
    return (
        output,
        jnp.asarray(output.class_queries_logits.numpy()),
        jnp.asarray(output.masks_queries_logits.numpy()),
    )


@pytest.mark.parametrize("kind", huggingface_models.QUERIES)
def test_scores_are_those_of_transformers(kind):
    output, classes, masks = answers(kind)
    size = huggingface_models.MASK_SIZES.get(kind)
    if size:
        masks = jnp.moveaxis(resize(jnp.moveaxis(masks, 1, -1), size), -1, 1)
    found = query_scores(classes, masks)
    sizes = [(50, 70)] * len(classes)
    expected = huggingface_models.processor(kind).post_process_semantic_segmentation(
        output, target_sizes=sizes, return_segmentation_scores=True
    )
    scores = np.stack([image.segmentation_scores.numpy() for image in expected])
    resized = np.asarray(resize(found, (50, 70)))
    np.testing.assert_allclose(resized, np.moveaxis(scores, 1, -1), atol=1e-5)
    labels = np.stack([image.segmentation.numpy() for image in expected])
    assert np.ptp(scores, axis=(2, 3)).max() > 1e-3
    highest = np.sort(resized, axis=-1)
    clear = highest[..., -1] - highest[..., -2] > 1e-5
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(resized.argmax(-1)[clear], labels[clear])


def test_the_softmax_of_the_logits_are_the_scores_divided_by_their_sum():
    keys = jax.random.split(jax.random.key(0))
    classes, masks = jax.random.normal(keys[0], (2, 5, 4)), jax.random.normal(keys[1], (2, 5, 6, 7))
    scores = query_scores(classes, masks)
    logits = query_logits(classes, masks)
    assert logits.shape == (2, 6, 7, 3)
    normalized = scores / scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(logits), normalized, rtol=1e-5)
    # The scores themselves would be read as nearly uniform.
    assert float(jnp.abs(jax.nn.softmax(scores) - normalized).max()) > 0.03


def test_where_no_query_sees_anything_all_classes_are_equally_likely():
    logits = query_logits(jnp.zeros((1, 2, 4)), jnp.full((1, 2, 3, 3), -1e4))
    np.testing.assert_allclose(logits, np.log(LEAST_SCORE), rtol=1e-5)
