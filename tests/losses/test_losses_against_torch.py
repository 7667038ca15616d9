"""Value and gradient next to PyTorch's, for the losses that the field has in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import close, head, labels, normal

from kdjax import losses
from kdjax.distillation import Distiller
from kdjax.recipes import METHODS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import torch_reference  # noqa: E402  (it imports torch)
from torch.nn import functional  # noqa: E402

from benchmarks.torch import losses as torch_losses  # noqa: E402

pytestmark = pytest.mark.torch


def against(ours, theirs, student, teacher, tolerance=1e-5):
    """Compares mean and gradient; PyTorch has channels second."""
    value, gradient = jax.jit(jax.value_and_grad(lambda s: ours(s, teacher).mean()))(student)
    nchw = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (student, teacher)]
    expected = theirs(nchw[0].requires_grad_(), nchw[1])
    expected.backward()
    assert nchw[0].grad is not None
    close(value, expected.detach().numpy(), tolerance)
    close(gradient, nchw[0].grad.numpy().transpose(0, 2, 3, 1), tolerance)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_cwd_is_mmrazors(tau):
    against(
        lambda s, t: losses.cwd(s, t, temperature=tau),
        lambda s, t: torch_losses.cwd(s, t, temperature=tau),
        normal(0, (2, 9, 7, 5)),
        normal(1, (2, 9, 7, 5)),
    )


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_pixelwise_kl_is_cirkds(tau):
    against(
        lambda s, t: losses.pixelwise_kl(s, t, temperature=tau),
        lambda s, t: torch_losses.pixelwise_kl(s, t, temperature=tau),
        normal(0, (2, 9, 7, 5)),
        normal(1, (2, 9, 7, 5)),
    )


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_standardized_kl_is_the_authors(tau):
    def theirs(student, teacher):
        rows = [x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (student, teacher)]
        return torch_reference.standardized_kl(*rows, tau)

    against(
        lambda s, t: losses.standardized_kl(s, t, temperature=tau),
        theirs,
        normal(0, (2, 9, 7, 5)),
        normal(1, (2, 9, 7, 5)),
    )


def test_nfd_over_batch_and_space_is_twice_pkd():
    samples = 2 * 9 * 7  # PKD divides by the unbiased standard deviation
    against(
        lambda s, t: losses.nfd(s, t, axes="batch_space", eps=1e-12) * (samples - 1) / samples,
        lambda s, t: 2 * torch_reference.pkd(s, t),
        normal(0, (2, 9, 7, 5)),
        normal(1, (2, 9, 7, 5)),
    )


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (65, 3)])
def test_pairwise_is_skds(size):
    against(
        losses.skd_pairwise,
        torch_reference.pair_wise,
        normal(0, (2, *size, 5)),
        normal(1, (2, *size, 8)),
    )


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (65, 3)])
def test_pairwise_through_the_norms_is_cirkds(size):
    def theirs(student, teacher):
        tables = []
        for x in (student, teacher):
            x = functional.max_pool2d(x, 2, ceil_mode=True)
            x = functional.normalize(x, dim=1).flatten(2)
            tables.append(x.transpose(1, 2) @ x)
        return ((tables[0] - tables[1]) ** 2).mean()

    against(
        lambda s, t: losses.skd_pairwise(s, t, window=2, stop_norms=False),
        theirs,
        normal(0, (2, *size, 5)),
        normal(1, (2, *size, 8)),
    )


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (65, 3)])
def test_minibatch_with_pooling_is_cirkds(size):
    def theirs(student, teacher):
        shares = []
        for x in (student, teacher):
            x = functional.avg_pool2d(x, 2, ceil_mode=True)
            x = functional.normalize(x, dim=1).flatten(2)
            shares.append(torch.log_softmax(torch.einsum("idp,jdq->ijpq", x, x) / 0.1, -1))
        q, p = shares
        return (p.exp() * (p - q)).sum(-1).mean()

    against(
        lambda s, t: losses.cirkd_minibatch(s, t, pool=2),
        theirs,
        normal(0, (2, *size, 5)),
        normal(1, (2, *size, 8)),
    )


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_a_weight_on_the_kl_of_torchdistiller_is_divided_by_classes_and_temperature(tau):
    """Their mean is over the classes too, and their KL is not multiplied by the square of tau."""

    def theirs(s, t):
        log_q, p = torch.log_softmax(s / tau, 1), torch.softmax(t / tau, 1)
        return 10 * functional.kl_div(log_q, p, reduction="none").mean()

    against(
        lambda s, t: 10 / (5 * tau**2) * losses.pixelwise_kl(s, t, temperature=tau),
        theirs,
        normal(0, (2, 9, 7, 5)),
        normal(1, (2, 9, 7, 5)),
    )


def test_the_method_jml_is_the_authors_objective():
    """Relative to the main head's cross-entropy, at the size of the labels, none ignored."""
    truth = labels(2, (2, 9, 7), classes=5, ignored=0)
    target = torch.nn.functional.one_hot(torch.from_numpy(truth).long(), 5).permute(0, 3, 1, 2)

    def jaccard(x, z):
        x, z = (values.transpose(0, 1).flatten(1) for values in (x, z))
        both = (x.sum(1) + z.sum(1) - (x - z).abs().sum(1)) / 2
        return (1 - (both + 1) / (x.sum(1) + z.sum(1) - both + 1)).mean()

    def theirs(s, t):
        p, q = torch.softmax(t, 1), torch.softmax(s, 1)
        entropy = functional.cross_entropy(s, torch.from_numpy(truth).long())
        divergence = (p * (p.log() - q.log())).sum(1).mean()
        # 0.25 and 0.75 are theirs, and 0.5 of the former is of the main head.
        whole = 0.5 * 0.25 * (entropy + divergence) / 2
        whole = whole + 0.75 * (jaccard(q, target.float()) + jaccard(q, p)) / 2
        return whole / (0.5 * 0.25 / 2)

    terms = {
        name: {**entry, **({"smooth": 1 / truth.size} if entry["loss"] == "jml" else {})}
        for name, entry in METHODS["jml"].items()
    }
    maps = {"logits": jax.ShapeDtypeStruct((2, 9, 7, 5), jnp.float32)}
    distiller = Distiller(terms, student=maps, teacher=maps)

    def ours(s, t):
        value, _ = distiller(
            {}, {}, {"logits": s}, {"logits": t}, truth, step=0, steps=1, key=jax.random.key(0)
        )
        return value + losses.cross_entropy(s, truth).mean()

    against(ours, theirs, normal(0, (2, 9, 7, 5)), normal(1, (2, 9, 7, 5)))


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampled_cross_entropy_is_interpolate_and_cross_entropy(align_corners):
    truth = labels(2, (2, 33, 50), classes=5)

    def theirs(s, _):
        resized = torch.nn.functional.interpolate(
            s, truth.shape[1:], mode="bilinear", align_corners=align_corners
        )
        target = torch.from_numpy(truth).long()
        return torch.nn.functional.cross_entropy(resized, target, ignore_index=255)

    def ours(s, _):
        values = losses.upsampled_cross_entropy(s, truth, align_corners=align_corners)
        return losses.valid_mean(values, truth != 255)

    student = normal(0, (2, 9, 7, 5))
    against(ours, theirs, student, student)


def test_statistics_and_augmented_scores_are_isdas():
    kernel, bias, _ = head(0)
    update = jax.jit(losses.ClassStatistics.update)
    statistics, estimator = losses.ClassStatistics.zeros(6, 6), torch_reference.EstimatorCV(6, 6)
    features, truth = normal(1), labels(2)
    for seed in range(3, 6):
        x, y = normal(seed), labels(seed + 10)
        statistics = update(statistics, x, y)
        keep = y != 255
        estimator.update(torch.from_numpy(x[keep]), torch.from_numpy(y[keep]))
    close(statistics.count, estimator.amount)
    close(statistics.mean, estimator.mean)
    close(statistics.covariance, estimator.covariance)

    keep = truth != 255
    weight = torch.from_numpy(kernel.T.copy()).requires_grad_()
    x = torch.from_numpy(features[keep]).requires_grad_()
    y = torch.from_numpy(truth[keep]).long()
    expected = torch_reference.isda_logits(
        x, weight, torch.from_numpy(bias), y, estimator.covariance, 3.0
    )
    ours = losses.isda_logits(features, kernel, bias, truth, statistics.covariance, strength=3.0)
    close(np.asarray(ours)[keep], expected.detach())

    torch.nn.functional.cross_entropy(expected, y).backward()
    assert x.grad is not None
    assert weight.grad is not None

    def mean(features, kernel):
        values = losses.isda_cross_entropy(
            features, kernel, bias, truth, statistics.covariance, strength=3.0
        )
        return losses.valid_mean(values, jnp.asarray(keep))

    by_features, by_kernel = jax.jit(jax.grad(mean, argnums=(0, 1)))(features, kernel)
    close(np.asarray(by_features)[keep], x.grad)
    close(by_kernel, weight.grad.T)
