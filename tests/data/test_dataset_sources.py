"""Folders, links and archives as sources of a set, and builder classes of a user's own."""

import os
import re
import sys
import tarfile

import pytest
import tiny_run
import warm
from original_trees import (
    ade20k,
    cityscapes,
    part,
    prepare,
    refuses,
    voc2012,
    write_tar,
    write_tree,
    write_zip,
)

import kdjax
from kdjax import config as configuration
from kdjax.data import sets
from kdjax.data.images import Images
from kdjax.data.preparing.builder import find_builder
from kdjax.data.preparing.classes import known_classes
from kdjax.utils.errors import UserError


def test_archives_and_folders_give_the_same_records(tmp_path):
    files = voc2012()
    prints = [prepare("voc2012", write_tree(tmp_path / "a", files), tmp_path / "1").fingerprint]
    # Another year's set is no substitute.
    other = {path.replace("VOC2012", "VOC2007"): data for path, data in part(files, "VOC").items()}
    write_tree(tmp_path / "b", other)
    write_tar(tmp_path / "b" / "VOCtrainval_11-May-2012.tar", part(files, "VOC"))
    write_tar(tmp_path / "b" / "benchmark.tgz", part(files, "bench"))
    prints.append(prepare("voc2012", tmp_path / "b", tmp_path / "2").fingerprint)
    # Some unpacked, some not; what is unpacked counts.
    write_tree(tmp_path / "c", part(files, "VOC"))
    write_tar(tmp_path / "c" / "SBD.tar.gz", part(files, "bench"))
    write_zip(tmp_path / "c" / "VOCtrainval.zip", {"VOC2012/JPEGImages/none.jpg": b""})
    prints.append(prepare("voc2012", tmp_path / "c", tmp_path / "3").fingerprint)
    assert len(set(prints)) == 1


def test_what_macos_adds_to_archives_is_passed_over(tmp_path):
    files = ade20k()
    junk = {f"__MACOSX/{path.replace('ADE_', '._ADE_')}": b"junk" for path in files}
    hidden = {path.replace("ADE_", "._ADE_"): b"junk" for path in files}
    source = write_zip(tmp_path / "ade.zip", {**files, **junk, **hidden})
    assert prepare("ade20k", source, tmp_path).splits == {"train": 2, "val": 1}


def test_folders_may_be_links(tmp_path):
    files = write_tree(tmp_path / "elsewhere", ade20k())
    source = tmp_path / "source"
    source.mkdir()
    (source / "ADEChallengeData2016").symlink_to(files / "ADEChallengeData2016")
    (files / "ADEChallengeData2016" / "again").symlink_to(source)
    assert prepare("ade20k", source, tmp_path).splits == {"train": 2, "val": 1}


def test_links_in_a_tar_lead_to_its_files(tmp_path):
    files = voc2012()
    folder = "VOCdevkit/VOC2012"
    linked = {
        f"{folder}/JPEGImages/2007_000032.jpg": ("../real/a.jpg", tarfile.SYMTYPE),
        f"{folder}/JPEGImages/2007_000033.jpg": (f"{folder}/real/b.jpg", tarfile.LNKTYPE),
        f"{folder}/real/b.jpg": ("./c.jpg", tarfile.SYMTYPE),
    }
    moved = dict(files)
    for name, path in (("a", "2007_000032"), ("c", "2007_000033")):
        moved[f"{folder}/real/{name}.jpg"] = moved.pop(f"{folder}/JPEGImages/{path}.jpg")
    plain = prepare("voc2012", write_tree(tmp_path / "a", files), tmp_path / "1")
    path = write_tar(tmp_path / "b" / "voc.tar", moved)
    add_links(path, linked)
    found = prepare("voc2012", tmp_path / "b", tmp_path / "2")
    assert found.fingerprint == plain.fingerprint
    for target in ("../../../outside.jpg", "2007_000099.jpg", "."):
        path = write_tar(tmp_path / "c" / "voc.tar", moved)
        add_links(path, linked | {f"{folder}/JPEGImages/2007_000099.jpg": (target, b"2")})
        message = rf"voc\.tar: .*/2007_000099\.jpg is a link to {re.escape(target)}, which is no f"
        refuses("voc2012", tmp_path / "c", tmp_path / "3", message)


def add_links(path, links):
    with tarfile.open(path, "a") as archive:
        for name, (target, kind) in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)


def test_published_counts_are_reported_before_anything_is_converted(tmp_path, monkeypatch):
    builder, lines = find_builder("cityscapes"), []
    monkeypatch.setattr(builder, "PUBLISHED", {"train": 2, "val": 500})
    monkeypatch.setattr(builder, "_convert", lambda self, pair: pytest.fail("converted"))
    source = write_tree(tmp_path / "source", cityscapes())
    with pytest.raises(pytest.fail.Exception, match="converted"):
        prepare("cityscapes", source, tmp_path, report=lines.append)
    assert lines == ["train: 2 images", "val: 1 images, but 500 are published"]


# A user's module: builders as TFDS has them, which know nothing of kdjax.
OWN_BUILDERS = """
import numpy as np
import tensorflow_datasets as tfds

class {prefix}Stripes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("2.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Any folder with a file count.txt."
    LABEL = tfds.features.LabeledImage(labels=["left", "right"], shape=(None, None, 1))
    NAME = tfds.features.Text()
    WIDTH, VALUE = 32, 1

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        features = dict(image=image, label=self.LABEL, name=self.NAME)
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        count = int((dl_manager.manual_dir / "count.txt").read_text())
        return {{split: self._generate_examples(count) for split in ("train", "val")}}

    def _generate_examples(self, count):
        for number in range(count):
            label = np.zeros((24, 32, 1), np.uint8)
            label[:, 16:] = self.VALUE
            label[0] = 255
            image = np.full((24, self.WIDTH, 3), 40 * number % 256, np.uint8)
            yield number, dict(image=image, label=label, name=str(number))

class {prefix}Unlabelled({prefix}Stripes):
    LABEL = tfds.features.Image(shape=(None, None, 1))

class {prefix}Colored({prefix}Stripes):
    LABEL = tfds.features.Image(shape=(None, None, 3))

class {prefix}Nameless({prefix}Stripes):
    NAME = tfds.features.Scalar(dtype=np.int64)

class {prefix}Wide({prefix}Stripes):
    WIDTH = 40

class {prefix}High({prefix}Stripes):
    VALUE = 2

class {prefix}Several({prefix}Stripes):
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="one"), tfds.core.BuilderConfig(name="two")]

nothing = 3
"""


# The command, where the tiny network has its name.
EVALUATE = """
import runpy, sys, tiny
from kdjax.models import NETWORKS
NETWORKS["tiny"] = "tiny:create"
sys.argv.insert(1, "evaluate")
runpy.run_module("kdjax", run_name="__main__", alter_sys=True)
"""


def write_module(tmp_path, name):
    """Writes the user's module, and the files its builders read."""
    # TFDS registers classes by name, once a process.
    content = OWN_BUILDERS.format(prefix=name.title().replace("_", ""))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(content)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "count.txt").write_text("9")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def own_faults(tmp_path_factory):
    root = tmp_path_factory.mktemp("own_faults")
    source = write_module(root, "own_faults")
    sys.path.insert(0, str(root / "code"))
    yield source
    sys.path.remove(str(root / "code"))


def test_a_builder_of_ones_own_is_prepared_and_opened(tmp_path, monkeypatch):
    source = write_module(tmp_path, "own_sets")
    monkeypatch.syspath_prepend(tmp_path / "code")
    name, data = "own_sets:OwnSetsStripes", tmp_path / "data"
    with pytest.raises(UserError, match=rf"prepare {name} --source DIR --data_dir"):
        sets.open_set(name, data)
    with pytest.raises(UserError, match="name their folder by --source"):
        sets.prepare(name, data)
    with pytest.raises(UserError, match="takes no option 'ignore'; it takes: none"):
        sets.prepare(name, data, source=source, ignore=[3])
    made = sets.prepare(name, data, source=source)
    opened = sets.open_set(name, data)
    assert opened.directory == data / "own_sets.OwnSetsStripes" / "2.1.0"
    assert opened.class_names == ("left", "right")
    assert opened.palette.shape == (2, 3)
    assert opened.splits == {"train": 9, "val": 9}
    assert sets.verify(name, data).fingerprint == made.fingerprint
    (example,) = opened.records("val").decoded([0])
    assert example["image"].shape == (24, 32, 3)
    assert set(example["label"][1]) == {0, 1}
    with pytest.raises(UserError, match=r"how many classes .*--num_classes"):
        known_classes(name)


@pytest.mark.parametrize(
    ("attribute", "wanted"),
    [
        ("OwnFaultsUnlabelled", "names no classes: make the label a tfds.features.LabeledImage"),
        ("OwnFaultsColored", r"feature 'label', .* of shape \(None, None, 1\); it has Image"),
        ("OwnFaultsNameless", "feature 'name', a tfds.features.Text"),
        ("OwnFaultsWide", "an image of 40 x 24 pixels and a label of 32 x 24"),
        ("OwnFaultsHigh", r"holds the value 2; allowed are 0\.\.1 and 255"),
        ("OwnFaultsSeveral", "has several BUILDER_CONFIGS: name a subclass"),
        ("nothing", "the argument names .* is no builder class: derive it from"),
        ("Nothing", 'the argument names .* has no "Nothing"; did you mean "nothing"'),
    ],
)
def test_a_builder_that_does_not_fit_is_told_what_it_should_be(
    own_faults, tmp_path, attribute, wanted
):
    with pytest.raises(UserError, match=wanted):
        sets.prepare(f"own_faults:{attribute}", tmp_path / "data", source=own_faults)
    assert not list(tmp_path.glob("data/*/*/*"))


def test_a_config_that_names_no_module_is_named(tmp_path):
    config = configuration.default()
    config.data.name = "no_such_module:Builder"
    with pytest.raises(UserError, match=r"config\.data\.name names .* no module \"no_such_module"):
        Images(config.data)


def test_a_run_that_names_no_module_is_named(tmp_path):
    config = configuration.default()
    config.data.name = "no_such_module:Builder"
    (tmp_path / "config.json").write_text(configuration.to_json(config))
    where = rf"{tmp_path / 'config.json'}: config\.data\.name"
    with pytest.raises(UserError, match=rf"{where} names .* no module \"no_such_module"):
        kdjax.evaluate(tmp_path)


def test_a_run_on_a_builder_of_ones_own_by_the_commands(tmp_path, monkeypatch):
    source, data = write_module(tmp_path, "own_run"), tmp_path / "data"
    monkeypatch.syspath_prepend(tmp_path / "code")
    name = "own_run:OwnRunStripes"
    sets.prepare(name, data, source=source)
    variables = tiny_run.environment(devices=1, pause=0.0)
    variables["PYTHONPATH"] += os.pathsep + str(tmp_path / "code")

    def run(*command):
        done = warm.run(*command, env=os.environ | variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = ("--config", tiny_run.__file__, "--config.data.name", name, "--config.steps=2")
    places = ("--config.data.data_dir", data, "--workdir", tmp_path / "run")
    run(tiny_run.__file__, *flags, *places)
    assert "mIoU" in run("-c", EVALUATE, "--workdir", tmp_path / "run")
