"""What training is fed with: caches that change nothing, mixtures, and two views of a crop."""

import re

import jax
import numpy as np
import pytest
import thorough
from PIL import Image

from kdjax import config as configuration
from kdjax.config import extra_set
from kdjax.data import caching, sets
from kdjax.data.caching import control_group_limits, decide_cache, least_memory
from kdjax.data.loading.sampling import example_indices
from kdjax.data.run_data import RunData
from kdjax.experiment.input_pipeline import make_input_pipeline
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError

# Of each set, the value of its red channel and its classes.
SETS = {"main": (50, "road sky"), "second": (100, "road sky"), "other": (150, "cat dog")}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """Three sets of flat images, 10, 5 and 3 of them, each image with a blue of its own."""
    found = {}
    for (name, (red, classes)), count in zip(SETS.items(), (10, 5, 3), strict=True):
        source, found[name] = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp(name)
        (source / "classes.txt").write_text("\n".join(classes.split()))
        for split in ("train", "val"):
            for index in range(count):
                size = (20 + index % 2, 24)
                image = np.full((*size, 3), (red, 0, 10 * index), np.uint8)
                label = np.arange(size[0])[:, None] // 10 % 2 + np.zeros(size, int)
                for kind, pixels in (("images", image), ("labels", label.astype(np.uint8))):
                    path = source / kind / split / f"{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
        sets.prepare("folder", found[name], source=source)
    return {name: str(path) for name, path in found.items()}


@pytest.fixture
def config(data_dirs):
    config = configuration.default()
    config.data.name = "folder"
    config.data.data_dir = data_dirs["main"]
    config.data.batch_size = 8
    config.data.crop_size = (16, 16)
    return config


def mixed(config, **entries):
    with config.unlocked():
        config.data.mixture.update(entries)
    configuration.read(config)
    return RunData(config.data)


def batches(images, steps, *, first_step=0, clean_view=False):
    source = make_input_pipeline(
        images, Placement(), first_step=first_step, steps=steps, seed=4, clean_view=clean_view
    )
    expand = jax.jit(source.expand)
    return [jax.device_get(expand(batch)) for batch in source.batches]


@pytest.mark.parametrize("photometric", thorough.after(1, [True, False]))
def test_the_cache_changes_no_batch(config, data_dirs, photometric):
    config.data.photometric = photometric
    entry = extra_set("folder", data_dir=data_dirs["other"], labelled=False)
    found = {}
    for place in ("none", "host", "device"):
        config.data.cache = place
        images = mixed(config, other=entry)
        assert images.cache.place == place
        found[place] = batches(images, 9, first_step=5, clean_view=photometric)
    assert len(found["none"]) == 4
    for streamed, host, device in zip(*found.values(), strict=True):
        assert streamed.keys() == {"image", "label", *(["clean"] if photometric else [])}
        for key, value in streamed.items():
            np.testing.assert_array_equal(host[key], value)
            if photometric and key == "image":
                assert np.abs(device[key].astype(int) - value).max() <= 1
            else:
                np.testing.assert_array_equal(device[key], value)


def test_the_clean_view_has_the_same_geometry(config):
    config.data.cache = "none"
    (batch,) = batches(RunData(config.data), 1, clean_view=True)
    clean, inside = batch["clean"], batch["label"] != 255
    assert (clean[inside][:, 0] == 50).all()
    assert (batch["image"][inside][:, 0] != 50).any()
    np.testing.assert_array_equal(batch["image"][~inside], clean[~inside])


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 2, 4)])
def test_shares_are_exact_in_every_period(weights):
    lengths = (10, 5, 3)[: len(weights)]
    period = sum(weights)
    indices = example_indices(np.arange(period * 60), 7, lengths, weights)
    ends = np.cumsum(lengths)
    members = np.searchsorted(ends, indices, "right")
    for row in members.reshape(-1, period):
        np.testing.assert_array_equal(np.bincount(row, minlength=len(weights)), weights)
    for member, length in enumerate(lengths):
        own = indices[members == member]
        for epoch in own[: len(own) // length * length].reshape(-1, length):
            assert len(set(epoch)) == length
    # Any stretch of it by itself, and another order from another seed.
    np.testing.assert_array_equal(
        example_indices(np.arange(50, 90), 7, lengths, weights), indices[50:90]
    )
    assert (example_indices(np.arange(50), 8, lengths, weights) != indices[:50]).any()


def test_a_mixture_keeps_its_shares_and_drops_labels(config, data_dirs):
    config.data.photometric = False
    config.data.weight = 2
    images = mixed(
        config,
        second=extra_set("folder", data_dir=data_dirs["second"]),
        other=extra_set("folder", data_dir=data_dirs["other"], labelled=False),
    )
    crops = [crop for batch in batches(images, 4) for crop in zip(*batch.values(), strict=True)]
    counts = dict.fromkeys((50, 100, 150), 0)
    for image, label in crops:
        red = int(image[0, 0, 0])
        counts[red] += 1
        assert (label == 255).all() == (red == 150)
    assert counts == {50: 16, 100: 8, 150: 8}


def test_a_mixture_that_cannot_be(config, data_dirs):
    def fails(message, **changes):
        entry = {**extra_set("folder", data_dir=data_dirs["other"]), **changes}
        with pytest.raises(UserError, match=message):
            next(mixed(config, x=entry).train_batches(first_step=0, steps=1, seed=0))

    fails(r'mixture.x: .*class 0 is "cat" there and "road" in the main .*labelled to False')
    fails('mixture.x.split is "extra"; folder in .* has train, val', split="extra")
    fails("config.data.mixture.x.weight is 0; it must be positive", weight=0)
    with config.unlocked():
        config.data.mixture.x = {"data_dir": "d"}
    with pytest.raises(UserError, match=r"mixture\.x\.labelled is missing; begin with kdjax"):
        configuration.read(config)


def test_an_evaluation_of_many_sizes_is_said_to_be_slow(config, monkeypatch):
    images = RunData(config.data)
    assert images.slow_evaluation("val") is None
    monkeypatch.setattr("kdjax.data.run_data.MANY_SHAPES", 1)
    line = (
        "the 10 images of val have 2 sizes, and the first evaluation compiles the network for each "
        "of them"
    )
    assert images.slow_evaluation("val") == (
        f"{line}; config.data.eval_pad_to=64 reduces them to 1, but changes the scores"
    )
    monkeypatch.setattr("kdjax.data.run_data.PAD_TO", 1)
    assert images.slow_evaluation("val") == line
    config.data.eval_pad_to = 7
    assert RunData(config.data).slow_evaluation("val") is None


def test_the_base_size_reaches_the_crops(config):
    config.data.cache = "none"
    config.data.update({"scale_range": (1, 1), "base_size": (12, 10), "crop_size": (16, 16)})
    (batch,) = batches(RunData(config.data), 1)
    inside = batch["label"] != 255
    assert inside.any(2).sum() == 8 * 10
    config.data.base_size = (10, 12)
    with pytest.raises(UserError, match=r"base_size is \(10, 12\); the long side is first"):
        configuration.read(config)


MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("wanted", "device", "host", "place", "reason"),
    [
        (
            "auto",
            16 * MIB,
            8 * GIB,
            "device",
            "every device.* 4.0 MiB, less than 25% of its 16.0 MiB",
        ),
        ("auto", 15 * MIB, 8 * GIB, "host", "in memory, about 3.0 MiB, less than 12.5% of 8.0"),
        ("auto", None, 24 * MIB, "host", "less than 12.5% of 24.0 MiB"),
        ("auto", None, 23 * MIB, "none", "every epoch.* about 3.0 MiB, more than 12.5% of 23.0"),
        ("device", None, 1, "device", "every device.* about 4.0 MiB, as set by config"),
        ("host", None, 1, "host", "as set by config.data.cache"),
        ("none", 64 * GIB, 64 * GIB, "none", "as set by config.data.cache"),
    ],
)
def test_what_auto_chooses_and_says(wanted, device, host, place, reason):
    # 4 examples, 3 MiB as they are, and 4 MiB padded to the larger of the two sizes.
    sizes = [(512, 512), (256, 512)]
    decision = decide_cache(wanted, 4, sizes, pixel_bytes=4, device_bytes=device, host_bytes=host)
    assert decision.place == place
    assert re.search(reason, decision.reason)


@pytest.mark.parametrize(
    ("listed", "limits", "found"),
    [
        ("0::/job/step", {"job/memory.max": "5000", "job/step/memory.max": "max"}, [5000]),
        # In a container that shows its own group as the root.
        ("0::/", {"memory.max": "7000"}, [7000]),
        ("4:cpu:/a\n5:memory:/b", {"memory/b/memory.limit_in_bytes": "9000"}, [9000]),
        ("4:cpu,memory:/gone", {"memory/memory.limit_in_bytes": "8000"}, [8000]),
        ("4:cpu:/a", {"memory/memory.limit_in_bytes": "8000"}, []),
        ("", {}, []),
    ],
)
def test_limits_of_control_groups_are_read(tmp_path, monkeypatch, listed, limits, found):
    for path, limit in limits.items():
        (tmp_path / "groups" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / path).write_text(f"{limit}\n")
    (tmp_path / "cgroup").write_text(f"{listed}\n" if listed else "")
    assert control_group_limits(tmp_path / "groups", tmp_path / "cgroup") == found
    monkeypatch.setattr(caching, "control_group_limits", lambda: found)
    assert not found or least_memory()[1] == found[0]


@pytest.mark.parametrize(
    ("other", "agreed"),
    [((1 << 33, 1 << 30), (1 << 33, 1 << 30)), ((-1, 1 << 40), (None, 1 << 34))],
)
def test_processes_agree_on_the_least_memory(monkeypatch, other, agreed):
    monkeypatch.setattr(caching, "_device_bytes", lambda: 1 << 36)
    monkeypatch.setattr(caching, "machine_bytes", lambda: 1 << 35)  # of two processes
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        caching.multihost_utils,
        "process_allgather",
        lambda own: np.stack([own, np.array(other, own.dtype)]),
    )
    assert least_memory() == agreed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.cache", "gpu", 'data.cache is "gpu"; it must be none or host or device or auto'),
        ("teacher.view", "dirty", 'teacher.view is "dirty"; it must be student or clean'),
        ("data.eval_pad_to", 0, "data.eval_pad_to is 0; it must be from 1 to 16384"),
        ("data.base_size", (512,), r"data.base_size is \(512,\); it must be two positive numbers"),
    ],
)
def test_choices_that_are_none(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        configuration.read(config)
