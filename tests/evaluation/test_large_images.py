"""Images that are labeled in strips."""

import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

import kdjax
from kdjax.evaluation import large_images
from kdjax.evaluation.evaluator import Predictor
from kdjax.evaluation.inference import Inference, class_scores
from kdjax.models import NNXNetwork, serialization

NAMES, PALETTE = ("a", "b", "c"), ((250, 0, 0), (0, 250, 0), (0, 0, 250))


@pytest.mark.parametrize("size", [(64, 96), (61, 50), (20, 100), (24, 32), (10, 12)])
@pytest.mark.parametrize(("window", "stride"), [((24, 32), (16, 24)), ((24, 32), (24, 32))])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_are_those_of_all_windows_at_once(size, window, stride, batch_size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    kernel = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)

    def look(windows):
        # The scores depend on the place in the window, so overlaps disagree.
        place = np.linspace(0, 99, windows.shape[1])[:, None, None]
        return (np.asarray(windows, np.float32) - 128 + place) @ kernel

    inference = Inference(window, stride)
    expected = np.asarray(class_scores(look, image[None], None, inference))[0].argmax(-1)
    strips = list(large_images.label_strips(look, image, inference, batch_size=batch_size))
    assert len(strips) == max(1, 1 + -(-(size[0] - window[0]) // stride[0]))
    np.testing.assert_array_equal(np.concatenate(strips), expected)


def test_only_one_view_by_windows_is_in_strips(monkeypatch):
    monkeypatch.setattr(large_images, "LARGE", 1000)
    windows = {"window": (24, 32), "stride": (16, 24)}
    assert large_images.in_strips((40, 40), Inference(**windows))
    assert not large_images.in_strips((20, 40), Inference(**windows))
    assert not large_images.in_strips((40, 40), Inference())
    assert not large_images.in_strips((40, 40), Inference(**windows, flip=True))
    assert not large_images.in_strips((40, 40), Inference(**windows, scales=(0.5,)))


def test_predict_writes_the_same_files(tmp_path, monkeypatch):
    net = tiny.create(num_classes=3, width=4, auxiliary=False, dtype="float32", rngs=nnx.Rngs(2))
    info = serialization.NetworkInfo("tiny", 3, 4, False, NAMES, PALETTE)
    serialization.save(tmp_path / "net", info, NNXNetwork.of(net)[1])
    (tmp_path / "in").mkdir()
    for name, size in (("a", (70, 90)), ("b", (30, 40))):
        pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    views = {"mode": "slide", "window": (32, 32), "stride": (24, 24)}
    kdjax.predict(tmp_path / "net", str(tmp_path / "in"), tmp_path / "whole", **views)
    looked = []
    look = Predictor.look
    monkeypatch.setattr(large_images, "LARGE", 2000)
    monkeypatch.setattr(Predictor, "look", lambda *args: looked.append(1) or look(*args))
    timing = kdjax.predict(tmp_path / "net", str(tmp_path / "in"), tmp_path / "strips", **views)
    assert looked
    assert timing.images == 2
    for kind in ("labels", "overlays"):
        for name in "ab":
            with (
                Image.open(tmp_path / "whole" / kind / f"{name}.png") as expected,
                Image.open(tmp_path / "strips" / kind / f"{name}.png") as found,
            ):
                np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
