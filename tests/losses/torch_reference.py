"""The field's own losses in PyTorch, written anew from their definitions; NCHW, as it has them."""

import torch
from torch.nn import functional


def pkd(student, teacher):
    """`PKDLoss` of mmrazor: half the squared error of maps normalized over batch and space."""

    def norm(feature):
        c = feature.shape[1]
        rows = feature.permute(1, 0, 2, 3).reshape(c, -1)
        rows = (rows - rows.mean(-1, keepdim=True)) / (rows.std(-1, keepdim=True) + 1e-6)
        return rows

    return functional.mse_loss(norm(student), norm(teacher)) / 2


def standardized_kl(student, teacher, temperature):
    """`kd_loss` of logit standardization, of rows of scores."""

    def normalize(logit):
        return (logit - logit.mean(-1, keepdim=True)) / (1e-7 + logit.std(-1, keepdim=True))

    log_q = torch.log_softmax(normalize(student) / temperature, 1)
    p = torch.softmax(normalize(teacher) / temperature, 1)
    return functional.kl_div(log_q, p, reduction="none").sum(1).mean() * temperature**2


def pair_wise(student, teacher, scale=0.5):
    """SKD's pair-wise loss, the norm detached as in the authors' code."""

    def nodes(feature):
        size = (int(feature.shape[2] * scale), int(feature.shape[3] * scale))
        pooled = functional.max_pool2d(feature, kernel_size=size, stride=size, ceil_mode=True)
        norm = pooled.pow(2).sum(1, keepdim=True).sqrt() + 1e-8
        return (pooled / norm.detach()).flatten(2)

    s, t = nodes(student), nodes(teacher)
    table_s, table_t = s.transpose(1, 2) @ s, t.transpose(1, 2) @ t
    return ((table_s - table_t) ** 2).sum() / s.shape[-1] ** 2 / s.shape[0]


class EstimatorCV:
    """ISDA's running estimate, diagonal, one class slot at a time."""

    def __init__(self, classes, channels):
        self.mean = torch.zeros(classes, channels)
        self.covariance = torch.zeros(classes, channels)
        self.amount = torch.zeros(classes)

    def update(self, features, labels):
        """`features` [N, A] and `labels` [N]."""
        for k in range(len(self.amount)):
            x = features[labels == k]
            if len(x) == 0:
                continue
            weight = len(x) / (len(x) + self.amount[k])
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            between = weight * (1 - weight) * (self.mean[k] - mean) ** 2
            self.covariance[k] = (1 - weight) * self.covariance[k] + weight * variance + between
            self.mean[k] = (1 - weight) * self.mean[k] + weight * mean
            self.amount[k] += len(x)


def isda_logits(features, weight, bias, labels, covariance, strength):
    """ISDA's augmented logits; `features` [N, A], `weight` [C, A]."""
    difference = weight[None] - weight[labels][:, None]  # [N, C, A]
    sigma = (covariance[labels][:, None] * difference**2).sum(-1)
    return features @ weight.T + bias + 0.5 * strength * sigma
