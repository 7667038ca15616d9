"""The PyTorch trainer of `benchmarks/torch` beside kdjax, as `benchmarks.train_step` runs them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx

from kdjax import interop
from kdjax.config import term
from kdjax.models import create
from kdjax.utils.errors import UserError

pytest.importorskip("torch", reason="compares with PyTorch")
import torch

from benchmarks import alone, train_step
from benchmarks.torch.lite import LightFPN
from benchmarks.torch.networks import PSPNet
from benchmarks.torch.trainer import Execution, Recipe, Trainer
from benchmarks.work import Work

pytestmark = pytest.mark.torch

# Every loss of the PyTorch trainer; the heads have other channels, so that two learn adapters.
TERMS = {
    "cwd": term("cwd"),
    "cwd_features": term("cwd", student="head", teacher="head", weight=1.0),
    "pixelwise_kl": term("pixelwise_kl", temperature=2.0),
    "gap": term("gap_weighted_kl"),
    "nfd": term("nfd"),
    "pfs": term("pfs"),
}
TINY = Work(
    teacher="pspnet_r18",
    teacher_width=8,
    student="pspnet_r18",
    student_width=4,
    classes=19,
    crop=(33, 49),
    batch_size=8,
    dtype="float32",
    terms=TERMS,
)
FLAGS = {
    "methods": "test_torch_trainer:TERMS",
    "teacher": "pspnet_r18",
    "teacher_width": "8",
    "student_width": "4",
    "crop": "33,49",
    "batch_size": "8",
    "rounds": "2",
}


@pytest.fixture
def given_flags():
    # One by one: a command line would ask for what commands of other tests require.
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        with flagsaver.as_parsed(**FLAGS):
            yield


def test_the_sides_have_the_same_losses_and_their_steps_are_compared(
    given_flags, monkeypatch, capsys
):
    figures = {"kdjax": 3.0, "pytorch": 2.0}
    monkeypatch.setattr(
        train_step,
        "alone",
        lambda side, work: dict.fromkeys(("seconds", "peak"), figures[side] * 2**20),
    )
    train_step.main([])
    printed = capsys.readouterr().out
    assert "pspnet_r18 (width 8) teaches pspnet_r18 (width 4), 8 x 33 x 49, float32" in printed
    assert "Worst relative difference of a loss in the first steps, in float32: " in printed
    assert "\n| test_torch_trainer:TERMS | " in printed
    assert "| peak of the process, MiB | 3.0 | 2.0 | 1.50 |" in printed


def test_the_light_pyramid_is_kdjaxs():
    rngs = nnx.Rngs(0)
    net = create("fpn_light_efficientnet_lite0", num_classes=5, auxiliary=False, rngs=rngs)
    theirs = LightFPN("lite0", 5)
    weights = {name: torch.tensor(x) for name, x in interop.to_mmseg(net).items()}
    theirs.load_state_dict(weights | {k: v for k, v in theirs.state_dict().items() if not v.ndim})
    # Maps of stride 16 have odd sides.
    images = np.random.default_rng(0).normal(size=(2, 48, 80, 3)).astype(np.float32)
    given = torch.from_numpy(images).permute(0, 3, 1, 2)
    features = net(jnp.asarray(images)).features
    with torch.no_grad():
        expected = {
            "head": theirs.eval()(given)["head"],
            "stage4": theirs.backbone["timm_model"](given)[-1],
        }
    for name, value in expected.items():
        wanted = value.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(features[name], wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_network_that_the_other_side_lacks_is_refused(given_flags):
    with (
        flagsaver.flagsaver(student="fpn_light_efficientnet_lite0"),
        pytest.raises(UserError, match="--student_width is 4; it must be 64"),
    ):
        train_step.chosen_work(TINY)


def test_a_side_alone_tells_its_memory(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["alone", "pytorch", TINY.to_json(), "1"])
    alone.main()
    found = json.loads(capsys.readouterr().out)
    assert found["peak"] > 2**20
    assert found["first_step"] > 0


def test_gradients_are_clipped():
    # The first step without decay moves the weights by the learning rate times the clipped norm.
    net = PSPNet(18, 4, 19)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    recipe = Recipe(steps=10, learning_rate=0.1, weight_decay=0.0, gradient_clip=1e-3)
    Trainer(net, None, recipe, Execution()).step(TINY.batch(0))
    moved = [after - old for after, old in zip(net.parameters(), before, strict=True)]
    norm = sum(float(x.detach().square().sum()) for x in moved) ** 0.5
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-2)
