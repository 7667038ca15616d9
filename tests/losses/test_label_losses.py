"""Losses that read labels, beside `gap_weighted_kl`, which is tested with the scores."""

import functools

import jax
import numpy as np
import pytest
import reference
from cases import EVERY, close, compiled, follows, labels, normal

from kdjax import losses


def dkd(student, teacher, truth, alpha, beta, temperature):
    out = np.zeros(truth.shape)
    for i in np.ndindex(*truth.shape):
        if (y := truth[i]) == 255:
            continue
        p, q = (reference.softmax(np.float64(x[i]) / temperature) for x in (teacher, student))
        two = [np.array([x[y], 1 - x[y]]) for x in (p, q)]
        rest = [np.delete(x, y) / (1 - x[y]) for x in (p, q)]
        out[i] = temperature**2 * (alpha * reference.kl(*two) + beta * reference.kl(*rest))
    return out


def wsld(student, teacher, truth, temperature, weights=None):
    """The cross-entropy form of the authors' code, and its weights."""
    out, found = np.zeros(truth.shape), np.zeros(truth.shape)
    for i in np.ndindex(*truth.shape):
        if (y := truth[i]) == 255:
            continue
        hard = [-np.log(reference.softmax(np.float64(x[i]))[y]) for x in (student, teacher)]
        found[i] = 1 - np.exp(-hard[0] / (hard[1] + 1e-7))
        p, q = (reference.softmax(np.float64(x[i]) / temperature) for x in (teacher, student))
        weight = found[i] if weights is None else weights[i]
        out[i] = -weight * temperature**2 * np.sum(p * np.log(q))
    return out, found


def ifvd(student, teacher, truth):
    """The formula, class by class and image by image."""

    def likeness(features):
        out = np.ones(truth.shape)
        for b, k in np.ndindex(len(truth), 6):
            here = truth[b] == k
            if here.any():
                pixels = np.float64(features[b][here])
                center = pixels.sum(0) / (here.sum() + 1e-6)
                norms = np.linalg.norm(pixels, axis=-1) * np.linalg.norm(center)
                out[b][here] = pixels @ center / np.maximum(norms, 1e-8)
        return out

    return (likeness(student) - likeness(teacher)) ** 2


BATCH = normal(0), normal(1), labels(2)


def test_dkd_value_and_gradient_are_the_formula():
    expected = functools.partial(dkd, teacher=BATCH[1], truth=BATCH[2], beta=0.5)
    found = compiled(EVERY["dkd"])(*BATCH)
    close(found.values, expected(BATCH[0], alpha=1.0, temperature=1.0))
    follows(found.by_student, lambda s: expected(s, alpha=1.0, temperature=1.0).mean(), BATCH[0])
    options = {"alpha": 2.0, "temperature": 4.0}
    close(jax.jit(functools.partial(losses.dkd, **options))(*BATCH), expected(BATCH[0], **options))


def test_dkd_is_the_divergence_where_the_others_weigh_what_the_teacher_gives_them():
    student, teacher, _ = BATCH
    truth = labels(2, ignored=0)
    given = np.take_along_axis(reference.softmax(teacher), truth[..., None], -1)[..., 0]
    close(
        losses.dkd(student, teacher, truth, beta=1 - given), losses.pixelwise_kl(student, teacher)
    )


def test_of_two_classes_there_is_one_other():
    student, teacher, truth = normal(0)[..., :2], normal(1)[..., :2], labels(2, classes=2)
    assert not np.any(jax.jit(losses.dkd)(student, teacher, truth, alpha=0.0))


def test_wsld_is_the_authors_less_the_entropy_and_has_their_gradient():
    student, teacher, truth = BATCH
    theirs, weights = wsld(*BATCH, temperature=2.0)
    entropy, _ = wsld(teacher, teacher, truth, temperature=2.0, weights=weights)
    found = compiled(EVERY["wsld"])(*BATCH)
    close(found.values, theirs - entropy)
    held = functools.partial(wsld, teacher=teacher, truth=truth, temperature=2.0, weights=weights)
    follows(found.by_student, lambda s: held(s)[0].mean(), student)


@pytest.mark.parametrize("name", ["dkd", "wsld"])
def test_a_level_of_all_scores_changes_nothing(name):
    student, teacher, truth = BATCH
    values = compiled(EVERY[name])(*BATCH).values
    level = normal(5, (2, 4, 5, 1))
    close(compiled(EVERY[name])(student + level, teacher - level, truth).values, values)


def test_ifvd_value_and_gradient_are_the_loop_over_classes():
    found = compiled(EVERY["ifvd"])(*BATCH)
    close(found.values, ifvd(*BATCH))
    follows(found.by_student, lambda s: ifvd(s, *BATCH[1:]).mean(), BATCH[0])
    assert np.all((found.values >= 0) & (found.values <= 4))


def test_ifvd_sees_neither_basis_nor_scale_nor_the_names_of_classes():
    student, teacher, truth = BATCH
    loss = compiled(EVERY["ifvd"])
    values = loss(*BATCH).values
    turn = np.linalg.qr(normal(3, (6, 6)))[0]
    scale = np.float32([3.0, 0.2])[:, None, None, None]
    close(loss(scale * (student @ turn), 7 * teacher, truth).values, values)
    renamed = np.where(truth == 255, 255, (truth + 2) % 6)
    close(loss(student, teacher, renamed).values, values)
    # The length of single pixels moves the center; a level moves everything.
    assert (
        np.abs(loss(np.exp(normal(4, (2, 4, 5, 1))) * student, teacher, truth).mean - values.mean())
        > 1e-3
    )
    assert np.abs(loss(student + 1, teacher, truth).mean - values.mean()) > 1e-3


def test_ifvd_of_one_class_is_likeness_to_the_mean_and_of_none_is_nothing():
    student, teacher, truth = BATCH
    loss = compiled(EVERY["ifvd"])

    def likeness(x):
        x = np.float64(x)
        mean = x.mean((1, 2), keepdims=True)
        return (x * mean).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(mean, axis=-1)

    one = loss(student, teacher, np.zeros_like(truth))
    close(one.values, (likeness(student) - likeness(teacher)) ** 2)
    for ignored in (255, 6, -1):
        none = loss(student, teacher, np.full_like(truth, ignored))
        assert not np.any(none.values)
        assert not np.any(none.by_student)


def jml(student, target, valid, smooth):
    """The authors' formula, with counts of pixels and a constant on both sides of a fraction."""
    out = np.zeros(6)
    for k in range(6):
        x, z = student[valid][:, k], target[valid][:, k]
        both = (x.sum() + z.sum() - np.abs(x - z).sum()) / 2
        missed, wrong = z.sum() - both, x.sum() - both
        out[k] = 1 - (both + smooth) / (both + missed + wrong + smooth)
    return out


def test_jml_value_and_gradient_are_the_authors():
    student, teacher, truth = BATCH
    valid, pixel = truth != 255, 5e-7 * truth.size
    shares = reference.softmax
    target = shares(np.float64(teacher))
    found = compiled(EVERY["jml"])(*BATCH)
    close(found.values, jml(shares(np.float64(student)), target, valid, pixel))
    follows(found.by_student, lambda s: jml(shares(s), target, valid, pixel).mean(), student)


def test_jml_with_labels_counts_the_classes_that_there_are():
    student, teacher, _ = BATCH
    truth = labels(2, classes=4)
    valid, pixel = truth != 255, 5e-7 * truth.size
    loss = jax.jit(lambda *maps: losses.jml(*maps, target="labels").mean())
    shares = reference.softmax(np.float64(student))
    expected = jml(shares, np.eye(6)[np.where(valid, truth, 0)], valid, pixel)
    close(loss(student, teacher, truth), expected[:4].mean())
    assert loss(student, teacher, np.full_like(truth, 255)) == 0.0


def edges(truth, size, window, classes=6):
    """Pixel by pixel: what has a class and another one around it, and no void; then averaged."""
    half, (height, width) = window // 2, truth.shape
    out = np.zeros((height, width, classes))
    for i, j in np.ndindex(height, width):
        around = truth[max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
        if (around < classes).all() and len(np.unique(around)) > 1:
            out[i, j, np.unique(around)] = 1
    pooled = np.zeros((*size, classes))
    for i, j in np.ndindex(*size):
        rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
        columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
        pooled[i, j] = out[rows, columns].mean((0, 1))
    return pooled


def test_bpkd_is_kl_on_the_edges_and_cwd_elsewhere():
    student, teacher = normal(0), normal(1)
    truth = np.zeros((2, 13, 20), np.int32)
    truth[:, 4:9, 6:15], truth[1, 7:, 3:], truth[:, 0, :9] = 1, 5, 255
    found = {
        part: jax.jit(functools.partial(losses.bpkd, part=part, window=5))(student, teacher, truth)
        for part in ("body", "edge")
    }
    share = np.stack([edges(image, (4, 5), 5) for image in truth])
    rest = [(1 - share) * x for x in (student, teacher)]
    close(found["body"], reference.cwd(*rest, temperature=1.0))
    values = reference.pixelwise_kl(np.float64(student), np.float64(teacher))[..., None]
    total = share.sum((1, 2))
    close(found["edge"], 6 * (share * values).sum((1, 2)) / np.where(total == 0, 1, total))
    assert not np.any(found["edge"][0, 2:])


def test_bpkd_without_edges_is_cwd():
    student, teacher, _ = BATCH
    truth = np.full((2, 4, 5), 3, np.int32)
    truth[1] = 255
    body = compiled(EVERY["bpkd-body"])(student, teacher, truth).values
    close(body, reference.cwd(np.float64(student), np.float64(teacher), 1.0))
    assert not np.any(compiled(EVERY["bpkd-edge"])(student, teacher, truth).values)
