"""The losses in float64 NumPy, written from their formulas: slow, literal, one image at a time."""

import numpy as np


def gradient(function, x, step=1e-5):
    """Central differences of a scalar function."""
    x = np.array(x, np.float64)
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        x0 = x[index]
        x[index] = x0 + step
        above = function(x)
        x[index] = x0 - step
        below = function(x)
        x[index] = x0
        out[index] = (above - below) / (2 * step)
    return out


def softmax(x, axis: int | tuple[int, ...] = -1):
    exp = np.exp(x - x.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)


def log_sum_exp(x):
    return x.max() + np.log(np.exp(x - x.max()).sum())


def kl(p, q):
    return float(np.sum(p * (np.log(p) - np.log(q))))


def cross_entropy(logits, labels, ignore_label=255):
    out = np.zeros(labels.shape)
    for index in np.ndindex(*labels.shape):
        if labels[index] != ignore_label:
            out[index] = -np.log(softmax(logits[index])[labels[index]])
    return out


def resize(image, height, width, align_corners):
    """Bilinear, `[h, w, C]` to `[height, width, C]`."""

    def neighbors(i, size, new_size):
        if align_corners:
            x = i * (size - 1) / max(new_size - 1, 1)
        else:
            x = min(max((i + 0.5) * size / new_size - 0.5, 0), size - 1)
        low = min(int(np.floor(x)), size - 1)
        return low, min(low + 1, size - 1), x - low

    out = np.zeros((height, width, image.shape[-1]))
    for row in range(height):
        top, bottom, down = neighbors(row, image.shape[0], height)
        for column in range(width):
            left, right, across = neighbors(column, image.shape[1], width)
            upper = (1 - across) * image[top, left] + across * image[top, right]
            lower = (1 - across) * image[bottom, left] + across * image[bottom, right]
            out[row, column] = (1 - down) * upper + down * lower
    return out


def pixelwise_kl(student, teacher, temperature=1.0):
    out = np.zeros(student.shape[:-1])
    for i in np.ndindex(*out.shape):
        p, q = softmax(teacher[i] / temperature), softmax(student[i] / temperature)
        out[i] = temperature**2 * kl(p, q)
    return out


def gap_weight(student, teacher, labels, gap, ignore_label=255):
    out = np.zeros(labels.shape)
    for i in np.ndindex(*labels.shape):
        if labels[i] == ignore_label:
            continue
        p, q, y = softmax(teacher[i]), softmax(student[i]), labels[i]
        out[i] = {
            "probability": max(0, p[y] - q[y]),
            "cross_entropy": max(0, -np.log(q[y]) + np.log(p[y])),
            "total_variation": 0.5 * np.abs(p - q).sum(),
        }[gap]
    return out


def cwd(student, teacher, temperature=4.0):
    batch, _, _, channels = student.shape
    out = np.zeros((batch, channels))
    for b, c in np.ndindex(batch, channels):
        p = softmax(teacher[b, :, :, c].ravel() / temperature)
        q = softmax(student[b, :, :, c].ravel() / temperature)
        out[b, c] = temperature**2 * kl(p, q)
    return out


def nfd(student, teacher, axes="space", eps=1e-5):
    over = {"space": (1, 2), "batch_space": (0, 1, 2), "channel": (3,), "all": (1, 2, 3)}[axes]

    def normalize(x):
        return (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + eps)

    return ((normalize(student) - normalize(teacher)) ** 2).mean((1, 2))


def cosines(pixels, norm=None):
    norm = np.linalg.norm(pixels, axis=-1, keepdims=True) if norm is None else norm
    unit = pixels / norm
    return unit @ unit.T


def pfs(student, teacher, similarity="cosine", temperature=1.0):
    out = np.zeros(len(student))
    for b in range(len(student)):
        s, t = (x[b].reshape(-1, x.shape[-1]) for x in (student, teacher))
        if similarity == "cosine":
            out[b] = np.mean((cosines(s) - cosines(t)) ** 2)
        else:
            q, p = (softmax(x @ x.T / (temperature * np.sqrt(x.shape[-1]))) for x in (s, t))
            out[b] = np.mean([kl(p[i], q[i]) for i in range(len(p))])
    return out


def pooled_nodes(image, rows, columns):
    height, width, _ = image.shape
    return np.stack(
        [
            image[top : top + rows, left : left + columns].max((0, 1))
            for top in range(0, height, rows)
            for left in range(0, width, columns)
        ]
    )


def skd_pairwise(student, teacher, window, student_norms=None):
    out = np.zeros(len(student))
    for b in range(len(student)):
        s, t = pooled_nodes(student[b], *window), pooled_nodes(teacher[b], *window)
        norm = None if student_norms is None else student_norms[b]
        out[b] = np.mean((cosines(s, norm) - cosines(t)) ** 2)
    return out


def full(covariance):
    return np.stack([np.diag(c) for c in covariance]) if covariance.ndim == 2 else covariance


def quadratic(kernel, v, sigma):
    """`(w_j - v)' sigma (w_j - v)` for every column j."""
    difference = kernel - v[:, None]
    return np.einsum("aj,ab,bj->j", difference, sigma, difference)


def fakd_kl(  # noqa: PLR0913
    features, kernel, bias, teacher, labels, covariance, strength, temperature, bound,
    ignore_label=255, own=None,
):  # fmt: skip
    """`own`: the student's distribution that the `student` bound holds constant."""
    covariance = full(covariance)
    out = np.zeros(labels.shape)
    for i in np.ndindex(*labels.shape):
        y = labels[i]
        if y == ignore_label:
            continue
        s, p = (features[i] @ kernel + bias) / temperature, softmax(teacher[i] / temperature)

        def surrogate(v, s=s, p=p, y=y):
            added = strength / (2 * temperature**2) * quadratic(kernel, v, covariance[y])
            entropy = -np.sum(p * np.log(p))
            return temperature**2 * (log_sum_exp(s + added) - p @ s - entropy)

        if bound == "pairwise":
            out[i] = sum(p[c] * surrogate(kernel[:, c]) for c in range(len(p)))
        else:
            out[i] = surrogate(
                {
                    "soft": kernel @ p,
                    "label": kernel[:, y],
                    "student": kernel @ (softmax(s) if own is None else own[i]),
                    "none": 0 * kernel[:, 0],
                }[bound]
            )
    return out


def fakd_cwd(  # noqa: PLR0913
    features, kernel, bias, teacher, labels, covariance, strength, temperature, ignore_label=255
):
    covariance = full(covariance)
    scores = features @ kernel + bias
    batch, _, _, classes = scores.shape
    out = np.zeros((batch, classes))
    for b, c in np.ndindex(batch, classes):
        s, y = scores[b, :, :, c].ravel() / temperature, labels[b].ravel()
        p = softmax(teacher[b, :, :, c].ravel() / temperature)
        w = kernel[:, c]
        u = np.array([0.0 if k == ignore_label else w @ covariance[k] @ w for k in y])
        added = strength / (2 * temperature**2) * u
        out[b, c] = temperature**2 * (log_sum_exp(s + added) - p @ s + p @ np.log(p))
    return out


def isda_logits(features, kernel, bias, labels, covariance, strength, ignore_label=255):
    covariance = full(covariance)
    out = features @ kernel + bias
    for i in np.ndindex(*labels.shape):
        if labels[i] != ignore_label:
            y = labels[i]
            out[i] += strength / 2 * quadratic(kernel, kernel[:, y], covariance[y])
    return out
