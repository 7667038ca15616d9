"""The losses in PyTorch, each from its definition, as scalars. Maps are [B, C, h, w].

A loss of `TAUGHT` takes the student's map, the teacher's map of the same size, the labels
[B, H, W], and a temperature. It may ignore some of them.
"""

import torch
from torch.nn import functional

from benchmarks.torch.networks import resize

IGNORED = 255


def cross_entropy(logits, labels):
    """Cross-entropy of the upsampled scores, averaged over the labeled pixels."""
    return functional.cross_entropy(resize(logits, labels.shape[1:]), labels, ignore_index=IGNORED)


def cwd(student, teacher, labels=None, temperature=4.0):
    """Shu et al. 2021: KL divergence between the channels' softmaxes over pixels."""
    log_q, log_p = (
        functional.log_softmax(x.flatten(2) / temperature, dim=2) for x in (student, teacher)
    )
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(2).mean()


def pixelwise_kl(student, teacher, labels=None, temperature=1.0):
    """Hinton et al. 2015: the mean over pixels of the KL divergence, as in CIRKD."""
    return _kl(student, teacher, temperature).mean()


def gap_weighted_kl(student, teacher, labels, temperature=1.0):
    """Shan 2019: the same, times the teacher's lead in the probability of the true class."""
    labels = labels[:, None].to(student.dtype)
    # The label under the center of each cell.
    labels = functional.interpolate(labels, student.shape[2:], mode="nearest-exact").long()
    labeled = labels != IGNORED
    classes = torch.where(labeled, labels, 0)
    with torch.no_grad():
        q, p = (x.softmax(1).gather(1, classes) for x in (student, teacher))
        weight = (p - q).clamp(min=0) * labeled
    values = weight[:, 0] * _kl(student, teacher, temperature)
    return values.sum() / labeled.sum().clamp(min=1)


def _kl(student, teacher, temperature):
    log_q, log_p = (functional.log_softmax(x / temperature, dim=1) for x in (student, teacher))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)


def nfd(student, teacher, labels=None, temperature=None):
    """Liu et al. 2022: squared distance of channels normalized over their pixels."""
    student, teacher = (functional.instance_norm(x) for x in (student, teacher))
    return functional.mse_loss(student, teacher)


def pfs(student, teacher, labels=None, temperature=None):
    """Shan 2019: squared distance of the tables of cosines between any two pixels of an image.

    |S'S|^2 + |T'T|^2 - 2 |S'T|^2 is that sum without the tables, which have 8192 x 8192 entries an
    image for crops of 512 x 1024.
    """
    s, t = (functional.normalize(x.flatten(2), dim=1) for x in (student, teacher))
    within_s, within_t, across = (
        torch.bmm(x, y.mT).square().sum((1, 2)) for x, y in ((s, s), (t, t), (s, t))
    )
    return (within_s + within_t - 2 * across).mean() / s.shape[2] ** 2


TAUGHT = {
    "cwd": cwd,
    "pixelwise_kl": pixelwise_kl,
    "gap_weighted_kl": gap_weighted_kl,
    "nfd": nfd,
    "pfs": pfs,
}
# Losses that compare channels need a learned 1x1 convolution if the numbers differ.
ADAPTED = ("cwd", "nfd")
