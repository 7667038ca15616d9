"""Losses for rare classes against their formulas, and against PyTorch's code for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from cases import close, few, follows, labels, normal, seeds
from hypothesis import given

from kdjax import losses
from kdjax.training.label_losses import RareClassOptions, mean_cross_entropy, overlap_losses


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_is_the_formula(gamma):
    logits, truth = normal(0), labels(1)

    def expected(x):
        values = reference.cross_entropy(x, truth)
        return values * (1 - np.exp(-values)) ** gamma

    def loss(x):
        return losses.focal(losses.cross_entropy(x, truth), gamma)

    close(loss(logits), expected(np.float64(logits)))
    gradient = jax.jit(jax.grad(lambda x: loss(x).mean()))(logits)
    follows(gradient, lambda x: expected(x).mean(), np.float64(logits))


def test_focal_of_certain_pixels_is_finite():
    logits = 1e4 * np.eye(6, dtype=np.float32)[labels(1, ignored=0)]
    for gamma in (0.5, 2.0):
        gradient = jax.grad(
            lambda x, gamma=gamma: losses.focal(
                losses.cross_entropy(x, labels(1, ignored=0)), gamma
            ).sum()
        )(logits)
        assert np.all(np.isfinite(gradient))


@few
@given(seeds)
def test_hard_pixels_are_the_largest_losses(seed):
    rng = np.random.default_rng(seed)
    values, valid = rng.exponential(size=(3, 4, 5)), rng.random((3, 4, 5)) < 0.7
    kept = np.asarray(losses.hard_pixels(values, valid, share=0.25))
    assert not np.any(kept & ~valid)
    assert kept.sum() == max(round(0.25 * valid.sum()), 1)
    assert values[kept].min() >= values[valid & ~kept].max()
    # With a probability, as mmsegmentation: of the label's probability, and at least the share.
    kept = np.asarray(losses.hard_pixels(values, valid, share=0.05, below=0.7))
    np.testing.assert_array_equal(kept, valid & (np.exp(-values) < 0.7))


def test_hard_pixels_do_not_hide_a_wrong_label():
    values = jnp.array([0.1, jnp.nan, 0.3, 0.2])
    assert losses.hard_pixels(values, jnp.ones(4, bool), share=0.25)[1]
    assert not losses.hard_pixels(values, jnp.zeros(4, bool), share=0.25).any()
    for wrong in ({"share": 0.0}, {"share": 0.5, "below": 1.5}):
        with pytest.raises(ValueError, match=r"must be .* got"):
            losses.hard_pixels(values, jnp.ones(4, bool), **wrong)


def lovasz_reference(logits, truth):
    """The authors' NumPy-like loop, over the classes that occur."""
    valid = truth != 255
    shares, truth = reference.softmax(logits, -1)[valid], truth[valid]
    found = []
    for c in np.unique(truth):
        mask = (truth == c).astype(float)
        errors = np.abs(mask - shares[:, c])
        order = np.argsort(-errors)
        errors, mask = errors[order], mask[order]
        iou = 1 - (mask.sum() - mask.cumsum()) / (mask.sum() + (1 - mask).cumsum())
        iou[1:] -= iou[:-1].copy()
        found.append(errors @ iou)
    return np.mean(found)


def test_lovasz_softmax_is_the_formula():
    logits, truth = normal(0), labels(1, classes=4)  # two classes do not occur

    def mean(x):
        return losses.lovasz_softmax(x, truth).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean))(logits)
    close(value, lovasz_reference(np.float64(logits), truth))
    follows(gradient, lambda x: lovasz_reference(x, truth), np.float64(logits))
    np.testing.assert_array_equal(losses.lovasz_softmax(logits, truth)[4:], 0)
    np.testing.assert_array_equal(losses.lovasz_softmax(logits, truth * 0 + 255), 0)


def test_lovasz_softmax_of_ignored_and_of_twice_the_images():
    logits, truth = normal(0), labels(1)
    before = losses.lovasz_softmax(logits, truth)
    twice = losses.lovasz_softmax(np.tile(logits, (2, 1, 1, 1)), np.tile(truth, (2, 1, 1)))
    close(twice, before)
    logits[truth == 255] = np.nan
    gradient = jax.grad(lambda x: losses.lovasz_softmax(x, truth).mean())(logits)
    close(losses.lovasz_softmax(logits, truth), before)
    assert np.all(np.isfinite(gradient))


@pytest.mark.torch
def test_lovasz_softmax_is_that_of_segmentation_models_pytorch():
    torch = pytest.importorskip("torch")
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, truth = normal(0), labels(1, classes=5)
    given = torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(truth).long()
    found = overlap_losses(logits, truth, RareClassOptions(lovasz=1.0))
    expected = smp.losses.LovaszLoss("multiclass", per_image=False, ignore_index=255)(*given)
    close(found["lovasz"][1], expected.numpy())


def test_dice_is_the_formula():
    logits, truth = normal(0), labels(1, classes=5)  # one class does not occur
    valid = (truth != 255)[..., None]
    shares = reference.softmax(np.float64(logits), -1) * valid
    targets = (truth[..., None] == np.arange(6)) & valid
    both, mine, other = (x.sum((0, 1, 2))[:5] for x in (shares * targets, shares, targets))
    expected = np.mean(1 - (2 * both + 2) / (mine + other + 2))  # Optax adds 1 to half the sums
    close(overlap_losses(logits, truth, RareClassOptions(dice=1.0))["dice"][1], expected)


@pytest.mark.torch
def test_weighted_cross_entropy_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    logits, truth = normal(0), labels(1)
    weights = (0.5, 2.0, 1.0, 0.0, 3.0, 1.5)
    options = RareClassOptions(class_weights=weights)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2),
        torch.tensor(truth).long(),
        torch.tensor(weights),
        ignore_index=255,
    )
    close(mean_cross_entropy(logits, truth, options, "labelled"), expected.numpy())


def test_weights_and_hard_pixels_select_and_divide():
    logits, truth = normal(0), labels(1)
    values, valid = np.asarray(losses.cross_entropy(logits, truth)), truth != 255
    weights = np.arange(6.0)

    def mean(mean_over="labelled", **options):
        return float(mean_cross_entropy(logits, truth, RareClassOptions(**options), mean_over))

    of_pixel = np.where(valid, weights[np.where(valid, truth, 0)], 0)
    total = (of_pixel * values).sum()
    close(mean("all", class_weights=(*weights,)), total / (of_pixel.sum() + (~valid).sum()))
    kept = np.asarray(losses.hard_pixels(values, valid, share=0.3))
    close(mean(hard_share=0.3), values[kept].mean())
    close(mean("all", hard_share=0.3), values[kept].sum() / (kept | ~valid).sum())
    both = (of_pixel * values)[kept].sum() / of_pixel[kept].sum()
    close(mean(hard_share=0.3, class_weights=(*weights,)), both)
    # The defaults are the plain mean to the digit.
    assert mean() == float(losses.valid_mean(losses.upsampled_cross_entropy(logits, truth), valid))
    ignored = np.full_like(truth, 255)
    options = RareClassOptions(class_weights=(*weights,), hard_share=0.5, focal_gamma=2.0)
    assert mean_cross_entropy(logits, ignored, options, "labelled") == 0


def test_dice_is_small_for_the_labels_alone():
    truth = labels(1)
    right = 50.0 * jax.nn.one_hot(np.where(truth == 255, 0, truth), 6)
    (_, value), (_, wrong) = (
        overlap_losses(scores, truth, RareClassOptions(dice=1.0))["dice"]
        for scores in (right, -right)
    )
    assert value < 1e-6 < 0.5 < wrong
    # Ignored pixels have no part in any sum: optax alone counts them.
    moved = jnp.where((truth == 255)[..., None], normal(3), right)
    close(overlap_losses(moved, truth, RareClassOptions(dice=1.0))["dice"][1], value, 1e-6)
    plain = optax.losses.dice_loss(right, jax.nn.one_hot(truth, 6), axis=(0, 1, 2))
    assert plain > value + 0.01
