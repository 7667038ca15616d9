"""A user's own data sets: they train like prepared ones, and their mistakes are named."""

import json
import sys

import jax
import numpy as np
import pytest
import thorough
from made_up_images import noise
from ml_collections import ConfigDict
from PIL import Image

from kdjax import config as configuration
from kdjax.config import extra_set
from kdjax.data import Dataset, sets
from kdjax.data.loading import pipeline
from kdjax.data.loading.sampling import AugmentOptions
from kdjax.data.run_data import RunData
from kdjax.experiment.input_pipeline import make_input_pipeline
from kdjax.experiment.run import Run, train_run
from kdjax.experiment.workdir import Workdir
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError

NAMES = ("road", "sky", "tree", "car")
SIZES = {"train": [(20, 30)] * 5 + [(18, 26)] * 4, "val": [(20, 30)] * 2 + [(12, 10)]}


def examples(split):
    for number, size in enumerate(SIZES[split]):
        image, label = noise(*size, number)
        yield {"image": image, "label": np.where(label == 255, 255, label % 4).astype(np.uint8)}


@pytest.fixture(scope="module")
def arrays():
    return {split: list(examples(split)) for split in SIZES}


@pytest.fixture(scope="module")
def prepared(arrays, tmp_path_factory):
    """The folder of a prepared set with the same examples."""
    root = tmp_path_factory.mktemp("set")
    (root / "classes.txt").write_text("\n".join(NAMES))
    for split, members in arrays.items():
        for number, example in enumerate(members):
            for kind, pixels in zip(("images", "labels"), example.values(), strict=True):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    sets.prepare("folder", root / "data", source=root)
    return str(root / "data")


@pytest.fixture
def config(prepared):
    config = configuration.default()
    config.data.update({"name": "folder", "data_dir": prepared, "batch_size": 8})
    config.data.update({"crop_size": (16, 24), "eval_batch_size": 2})
    return config


def own(splits, **options):
    return Dataset(splits, NAMES, **options)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def batches(images, **views):
    source = make_input_pipeline(
        *(images, Placement()),
        **{"first_step": 3, "steps": 7, "seed": 4, "clean_view": False, **views},
    )
    expand = jax.jit(source.expand)
    return [jax.device_get(expand(batch)) for batch in source.batches]


@pytest.mark.parametrize("cache", thorough.after(2, ["none", "device", "host"]))
def test_it_trains_as_a_prepared_set(config, arrays, cache):
    config.data.cache = cache
    expected = batches(RunData(config.data), clean_view=True)
    same(batches(RunData(config.data, own(arrays)), clean_view=True), expected)


@pytest.mark.parametrize("cache", thorough.after(1, ["host", "none"]))
def test_it_mixes_with_prepared_sets(config, arrays, prepared, monkeypatch, cache):
    config.data.update({"cache": cache, "weight": 2})
    with config.unlocked():
        config.data.mixture.more = extra_set("folder", data_dir=prepared, labelled=False)
        config.data.mixture.val = extra_set("folder", data_dir=prepared, split="val")
    configuration.read(config)
    expected = batches(RunData(config.data))
    same(batches(RunData(config.data, own(arrays))), expected)
    monkeypatch.setitem(sys.modules, "mixed_in", type(sys)("mixed_in"))
    monkeypatch.setattr("mixed_in.more", own(arrays), raising=False)
    config.data.mixture.more.name = "mixed_in:more"
    same(batches(RunData(config.data)), expected)
    same(batches(RunData(config.data, own(arrays))), expected)


def test_it_is_evaluated_as_a_prepared_set(config, arrays):
    images, expected = RunData(config.data, own(arrays)), RunData(config.data)
    for ours, theirs in zip(images.eval_batches("val"), expected.eval_batches("val"), strict=True):
        same(ours, theirs)
    assert images.sizes("train") == expected.sizes("train") == SIZES["train"]
    assert images.sizes("val") == expected.sizes("val")
    for ours, theirs in zip(images.panel_examples(), expected.panel_examples(), strict=True):
        assert ours.keys() == theirs.keys()
        same(*({**example, "name": 0} for example in (ours, theirs)))
    assert images.class_names == expected.class_names == NAMES


def test_the_rows_of_all_processes_are_the_batch_of_one(arrays):
    settings = {"batch_size": 4, "seed": 5, "options": AugmentOptions((16, 24)), "steps": range(20)}
    records = own(arrays).records("train")
    whole = list(pipeline.train_batches(records, **settings))
    shares = [
        list(pipeline.train_batches(records, **settings, process_index=index, process_count=2))
        for index in range(2)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    same(joined, whole)


class Rows:
    """A source like a HuggingFace data set: PIL images, other names, and labels from 1."""

    def __init__(self, members):
        self._members = members

    def __len__(self):
        return len(self._members)

    def __getitem__(self, index):
        assert type(index) is int
        values = self._members[index]
        label = values["label"].astype(int)
        mask = Image.fromarray(np.where(label == 255, 0, label + 1).astype(np.uint8))
        return {"pixels": Image.fromarray(values["image"]), "mask": mask, "file": f"{index:03}.jpg"}


HOW = {"image": "pixels", "label": "mask", "example_name": "file"}
FROM_ONE = {0: 255, 1: 0, 2: 1, 3: 2, 4: 3}


def test_features_and_labels_may_mean_something_else(arrays):
    rows = {split: Rows(members) for split, members in arrays.items()}
    dataset = own(rows, **HOW, label_ids=FROM_ONE)
    for split, expected in arrays.items():
        found = pipeline.load_examples(dataset, split, range(len(expected)))
        same([{key: one[key] for key in ("image", "label")} for one in found], expected)
    assert dataset.records("val").names() == ["000.jpg", "001.jpg", "002.jpg"]
    assert own(arrays).records("val").names() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["list", "int32", "int64", "uint16"])
def test_labels_of_any_whole_numbers(kind):
    ignored = 900 if kind == "uint16" else -100
    label = np.array([[0, 3, 255], [1, ignored, 2]], "int64" if kind == "list" else kind)
    example = {"image": np.zeros((2, 3, 3), np.uint8), "label": label}
    if kind == "list":
        example = {key: value.tolist() for key, value in example.items()}
    elif kind == "int64":
        example["label"] = label[..., None]
    ids = {0: 0, 1: 1, 2: 2, 3: 3, ignored: 255}
    (found,) = own({"train": [example]}, label_ids=ids).records("train").decoded([0])
    same(found["label"], np.array([[0, 3, 255], [1, 255, 2]], np.uint8))
    assert found["image"].dtype == np.uint8


@pytest.mark.parametrize(("mode", "expected"), [("L", (7, 7, 7)), ("RGBA", (7, 8, 9))])
def test_images_of_pil_become_rgb(mode, expected):
    pixel = {"L": 7, "RGBA": (7, 8, 9, 255)}[mode]
    rows = [{"image": Image.new(mode, (3, 2), pixel), "label": np.zeros((2, 3), bool)}]
    (example,) = own({"train": rows}).records("train").decoded([0])
    same(example["image"], np.broadcast_to(np.uint8(expected), (2, 3, 3)))


def test_the_fingerprint_says_what_it_is(arrays):
    known = own(arrays).fingerprint
    assert known == own(arrays).fingerprint
    assert len(known) == 16
    darker = [{**example, "image": example["image"] // 2} for example in arrays["train"]]
    others = [
        Dataset(arrays, NAMES[::-1]),
        own({**arrays, "train": arrays["train"][1:]}),
        own({**arrays, "train": arrays["train"][:-1] + darker[-1:]}),
        own(arrays, label_ids={0: 1, 1: 0, 2: 2, 3: 3}),
        own(arrays, version="2"),
    ]
    assert len({known, *(other.fingerprint for other in others)}) == 6
    # Name and palette are not part of the fingerprint.
    alike = own(arrays, name="else", palette=np.zeros((4, 3), int))
    assert alike.fingerprint == known


IMAGE, LABEL = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)


UNFIT = [
    ({"image": None}, r"has an image that is object of shape \(\)"),
    (
        {"image": IMAGE / 255},
        r"example 1 of split 'train' of data set mine has an image that is float64 of shape "
        r"\(4, 6, 3\) from 0 to 0; it must hold integers 0..255 of shape \(H, W, 3\)",
    ),
    ({"image": IMAGE.transpose(2, 0, 1)}, r"\(3, 4, 6\) .*\(H, W, 3\); channels come last"),
    ({"image": IMAGE[..., 0]}, r"an image that is uint8 of shape \(4, 6\)"),
    ({"image": IMAGE.astype(int) - 1}, "an image that is int64 .* from -1 to -1"),
    ({"image": Image.new("F", (6, 4))}, "has 32 bits a channel, and images have 8"),
    ({"label": LABEL[:2]}, "an image of 6 x 4 pixels and a label of 6 x 2; they must have"),
    ({"label": LABEL / 1}, r"a label that is float64 .*integers of shape \(H, W\)"),
    ({"label": IMAGE}, r"a label that is uint8 of shape \(4, 6, 3\)"),
    ({"label": Image.new("RGB", (6, 4))}, r"a label that is uint8 of shape \(4, 6, 3\)"),
    (
        {"label": LABEL + 4},
        r"a label that holds the value 4; allowed are 0\.\.3 and 255",
    ),
    ({"label": LABEL.astype(int) - 1}, "a label that holds the value -1; allowed"),
]


def unfit(changes):
    good = {"image": IMAGE, "label": LABEL}
    return own({"train": [good, good | changes]}, name="mine").records("train")


@pytest.mark.parametrize(("changes", "message"), UNFIT)
def test_an_example_that_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        list(unfit(changes).decoded([0, 1]))


@pytest.mark.parametrize(("changes", "message"), thorough.after(1, UNFIT))
def test_an_example_that_does_not_fit_is_named_where_tensorflow_reads_it(changes, message):
    options = AugmentOptions((4, 4))
    with pytest.raises(UserError, match=message):
        list(
            pipeline.train_batches(
                unfit(changes), batch_size=2, seed=0, steps=range(1), options=options
            )
        )


class Broken:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([(IMAGE, LABEL)], {}, 'is a tuple; it must be a mapping, as {"image": ...'),
        (
            [{"image": IMAGE, "mask": LABEL}],
            {},
            r"example 0 .* has no 'label'; it has image, mask: choose one by Dataset\(label=...\)",
        ),
        (
            [{"image": IMAGE, "label": LABEL}],
            {"example_name": "file"},
            r"has no 'file'; it has image, label: choose one by Dataset\(example_name=...\)",
        ),
        (Broken(), {}, "example 0 of .* cannot be read: OSError: the disk is gone"),
        (
            [{"image": IMAGE, "label": LABEL}],
            {"label_ids": {1: 0}},
            r"the value 0; allowed are those of label_ids \(1, 255\)",
        ),
    ],
)
def test_a_source_that_does_not_fit_is_told_what_it_should_be(rows, options, message):
    with pytest.raises(UserError, match=message):
        _ = own({"train": rows}, **options).fingerprint


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({}, NAMES), {}, "data set own: no split"),
        (({"train": []}, NAMES), {}, "split 'train' is empty"),
        (({"train": iter([1])}, NAMES), {}, "is a list_iterator without a length or"),
        (({"train": [1]}, "road"), {}, "class_names is 'road'; give 1 to 255 names"),
        (({"train": [1]}, []), {}, "class_names is .*; give 1 to 255 names"),
        (({"train": [1]}, NAMES), {"palette": [[1, 2, 3]]}, r"palette is int64 of shape \(1, 3\)"),
        (({"train": [1]}, NAMES), {"label_ids": {1: 4}}, r"maps 1 to 4; class ids are 0\.\.3"),
    ],
)
def test_a_description_that_makes_no_sense(arguments, options, message):
    with pytest.raises(UserError, match=message):
        Dataset(*arguments, **options)


MODULE = """
import numpy as np
from kdjax.data import Dataset

def examples(count, seed):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        label = np.zeros((24, 32), np.uint8)
        label[:, generator.integers(8, 24):] = 1
        label[0] = 255
        image = label[..., None] % 255 * 90 + generator.integers(0, 60, (24, 32, 3))
        yield {"image": image.astype(np.uint8), "label": label}

def arrays(count=9, *, seed=0):
    splits = {"train": list(examples(count, seed)), "val": list(examples(3, seed + 1))}
    return Dataset(splits, ["left", "right"], name="own_arrays:arrays")

def from_folder(data_dir):
    return Dataset({"train": [data_dir]}, ["a"], name=data_dir)

ready = arrays()
nothing = 3

def fails():
    raise ValueError("no such file")

def exits():
    raise SystemExit(0)

def returns_none():
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_arrays.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_arrays", None)


def test_a_name_in_a_config_finds_it(module):
    config = configuration.default()
    config.data.name = "own_arrays:ready"
    configuration.read(config)
    assert RunData(config.data).fingerprint == RunData(config.data).fingerprint
    config.data.name = "own_arrays:arrays"
    with config.unlocked():
        config.data.options = {"count": 5, "seed": 7}
    again = configuration.from_json(configuration.to_json(config))
    configuration.read(again)
    assert len(RunData(again.data).sizes("train")) == 5
    assert sets.open_named("own_arrays:from_folder", "the/data", {}).name == "the/data"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ready", {"count": 5}, r'names "own_arrays:ready", which takes no options \(count\)'),
        ("arrays", {"counts": 5}, "which failed: TypeError: .*unexpected .*'counts'"),
        ("fails", {}, 'names the data set "own_arrays:fails", which failed: ValueError: no such'),
        ("exits", {}, "which failed: SystemExit: 0"),
        ("returns_none", {}, "which returned a NoneType, no kdjax.data.Dataset"),
        ("nothing", {}, "is no builder class: derive it from .* or a function that returns one"),
        ("array", {}, 'has no "array"; did you mean "arrays"'),
    ],
)
def test_a_name_that_is_no_data_set(module, name, options, message):
    config = configuration.default()
    config.data.name = f"own_arrays:{name}"
    with config.unlocked():
        config.data.options = options
    with pytest.raises(UserError, match=message):
        RunData(config.data)


def test_what_needs_no_preparing_says_so(module, tmp_path):
    with pytest.raises(UserError, match="needs no preparing"):
        sets.prepare("own_arrays:ready", tmp_path)


def test_a_split_that_is_not_there(config, arrays):
    config.data.val_split = "test"
    with pytest.raises(UserError, match='val_split is "test"; own has train, val'):
        RunData(config.data, own(arrays))


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.mark.thorough
def test_a_run_continues_bit_for_bit(module, tmp_path, monkeypatch):
    config = configuration.default()
    config.update({"steps": 4, "log_every": 1, "eval_every": 2})
    config.data.update({"name": "own_arrays:arrays", "batch_size": 8, "crop_size": (16, 16)})
    config.data.update({"cache": "none", "eval_batch_size": 8})
    config.student.update(configuration.network("tiny", width=4))
    config.data.options = ConfigDict({"seed": 3})

    def begin(name):
        options = configuration.read(config)
        train_run(Run(options, Workdir(tmp_path / name), "own", "student", "plain"))

    begin("whole")
    real = RunData.train_batches

    def stops(self, *, first_step, **options):
        for index, batch in enumerate(real(self, first_step=first_step, **options)):
            if first_step == 0 and index == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(RunData, "train_batches", stops)
    with pytest.raises(KeyboardInterrupt):
        begin("cut")
    begin("cut")
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    config.data.options.seed = 4
    with pytest.raises(UserError, match=r"run of another config .*options\.seed 3 there"):
        begin("cut")
