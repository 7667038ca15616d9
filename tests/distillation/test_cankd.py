"""CanKD against the formula in float64, and against the authors' code in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field import close, given, measure, normal, over_devices

from kdjax.distillation import Distiller, Spec, term
from kdjax.distillation.methods.cankd import CanKD
from kdjax.utils.errors import UserError

STUDENT, TEACHER = normal(0, 8, 5, 7, 6), normal(1, 8, 5, 7, 6)
NAMES = ("query", "key", "value", "output")


@functools.cache
def learned():
    """Returns parameters whose attention has an effect, unlike that of new ones."""
    params = CanKD().init_params(jax.random.key(3), Spec(6), Spec(6))
    return params | {"output": params["output"] | {"scale": normal(2, 6)}}


def normalized(x, axes):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def expected(params, student, teacher):
    """The table of all pairs of pixels, as the authors compute it."""
    student, teacher = np.float64(student), np.float64(teacher)

    def convolved(name, x):
        return x @ np.float64(params[name]["kernel"][0, 0]) + np.float64(params[name]["bias"])

    def pooled(x):
        return x[:, :4, :6].reshape(8, 2, 2, 3, 2, -1).max((2, 4)).reshape(8, 6, -1)

    query = convolved("query", student).reshape(8, 35, -1)
    table = query @ pooled(convolved("key", teacher)).transpose(0, 2, 1) / 6
    found = (table @ pooled(convolved("value", teacher))).reshape(8, 5, 7, -1)
    found = normalized(found @ np.float64(params["output"]["kernel"][0, 0]), (0, 1, 2))
    student = student + found * np.float64(params["output"]["scale"])
    return np.mean((normalized(student, (1, 2)) - normalized(teacher, (1, 2))) ** 2)


def test_cankd_is_the_distance_after_attention_to_all_pixels():
    value, _, _, (by_params, by_student, by_teacher) = measure(
        CanKD(), learned(), {}, given(STUDENT, TEACHER)
    )
    close(value, expected(learned(), STUDENT, TEACHER))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves((by_params, by_student)))
    assert not np.asarray(by_teacher).any()
    if jax.device_count() >= 8:
        spread = measure(CanKD(), learned(), {}, over_devices(given(STUDENT, TEACHER)))
        close(spread[0], value, 1e-6)


def test_cankd_begins_without_attention():
    """The authors begin with a scale of 0, so that the first step is that of NFD."""
    params = CanKD().init_params(jax.random.key(3), Spec(6), Spec(6))
    value, _, _, (by_params, _, _) = measure(CanKD(), params, {}, given(STUDENT, TEACHER))
    close(value, expected(params, STUDENT, TEACHER))
    assert np.asarray(by_params["output"]["scale"]).any()
    assert not np.asarray(by_params["query"]["kernel"]).any()


def test_cankd_takes_maps_of_two_rows_and_columns():
    flat = {"stage4": jax.ShapeDtypeStruct((2, 1, 7, 6), jnp.float32)}
    with pytest.raises(UserError, match="takes maps of 2 x 2 or more, got 1 x 7"):
        Distiller({"t": term("cankd")}, student=flat, teacher=flat)


@pytest.mark.torch
def test_cankd_is_the_authors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch import nn

    layers = nn.ModuleDict(
        {
            **{name: nn.Conv2d(6, 3, 1) for name in ("query", "key", "value")},
            "output": nn.Conv2d(3, 6, 1),
            "norm": nn.BatchNorm2d(6),
        }
    )
    with torch.no_grad():
        for name in NAMES:
            kernel, bias = (learned()[name].get(part) for part in ("kernel", "bias"))
            layers[name].weight[..., 0, 0] = torch.from_numpy(np.array(kernel)[0, 0].T.copy())
            if bias is not None:
                layers[name].bias.copy_(torch.from_numpy(np.array(bias)))
        layers["norm"].weight.copy_(torch.from_numpy(learned()["output"]["scale"]))
    student, teacher = (
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (STUDENT, TEACHER)
    )
    student.requires_grad_()

    # `NonLocalAttention` and `NLKD_IN_Loss`, whose weight 10 is on half of the distance.
    def rows(name, x):
        return layers[name](x).flatten(2).transpose(1, 2)

    def pooled(name, x):
        return nn.functional.max_pool2d(layers[name](x), 2).flatten(2).transpose(1, 2)

    table = rows("query", student) @ pooled("key", teacher).transpose(1, 2)
    found = table / table.shape[-1] @ pooled("value", teacher)
    found = found.transpose(1, 2).reshape(8, 3, 5, 7)
    attended = layers["norm"](layers["output"](found)) + student
    norm = nn.InstanceNorm2d(6, affine=False)
    theirs = 10 * nn.functional.mse_loss(norm(attended), norm(teacher)) / 2
    theirs.backward()
    assert student.grad is not None

    value, _, _, (by_params, by_student, _) = measure(
        CanKD(), learned(), {}, given(STUDENT, TEACHER)
    )
    close(5 * value, theirs.detach().numpy())
    close(5 * by_student, student.grad.numpy().transpose(0, 2, 3, 1))
    for name in NAMES:
        gradient = layers[name].weight.grad
        assert gradient is not None
        close(5 * np.array(by_params[name]["kernel"])[0, 0], gradient[..., 0, 0].numpy().T)
    close(5 * by_params["output"]["scale"], layers["norm"].weight.grad.numpy())
