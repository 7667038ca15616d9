"""Folders, links, and archives as sources of a set, and builders of a user."""

import os
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
from kdjax.data.preparing.builder import find_builder
from kdjax.data.preparing.classes import known_classes
from kdjax.data.run_data import RunData
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
    # Unpacked files take precedence over an archive.
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


def test_links_in_a_tar_stay_inside(tmp_path):
    files = voc2012()
    folder = "VOCdevkit/VOC2012"
    linked = {
        f"{folder}/JPEGImages/2007_000032.jpg": ("../real/a.jpg", tarfile.SYMTYPE),
        f"{folder}/JPEGImages/2007_000033.jpg": (f"{folder}/real/c.jpg", tarfile.LNKTYPE),
    }
    moved = dict(files)
    for name, path in (("a", "2007_000032"), ("c", "2007_000033")):
        moved[f"{folder}/real/{name}.jpg"] = moved.pop(f"{folder}/JPEGImages/{path}.jpg")
    plain = prepare("voc2012", write_tree(tmp_path / "a", files), tmp_path / "1")
    path = write_tar(tmp_path / "b" / "voc.tar", moved)
    add_links(path, linked)
    found = prepare("voc2012", tmp_path / "b", tmp_path / "2")
    assert found.fingerprint == plain.fingerprint
    path = write_tar(tmp_path / "c" / "voc.tar", moved)
    outside = f"{folder}/JPEGImages/2007_000099.jpg"
    add_links(path, linked | {outside: ("../../../../outside.jpg", tarfile.SYMTYPE)})
    refuses(
        "voc2012", tmp_path / "c", tmp_path / "3", r"voc\.tar: .*2007_000099.*outside.*--source"
    )


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


# A user's module with builders.
OWN_BUILDERS = """
import numpy as np
import tensorflow_datasets as tfds
from kdjax.data.preparing.builder import SegmentationBuilder, encode_png

class {prefix}Stripes(SegmentationBuilder):
    VERSION = tfds.core.Version("2.1.0")
    NEEDS_SOURCE = False
    OPTIONS = ("count",)
    class_names = ["left", "right"]

    def __init__(self, count=9, **options):
        self._count = count
        super().__init__(**options)

    def _split_generators(self, dl_manager):
        return {{split: self._generate_examples() for split in ("train", "val")}}

    def _generate_examples(self):
        for number in range(self._count):
            label = np.zeros((24, 32), np.uint8)
            label[:, 16:] = 1
            label[0] = 255
            image = np.full((24, 32, 3), 40 * number % 256, np.uint8)
            yield number, dict(image=encode_png(image), label=encode_png(label), name=str(number))

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
    """Writes the user's module."""
    # TFDS registers classes by name, once a process.
    content = OWN_BUILDERS.format(prefix=name.title().replace("_", ""))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(content)


def test_a_builder_of_a_user_is_prepared_and_opened(tmp_path, monkeypatch):
    write_module(tmp_path, "own_sets")
    monkeypatch.syspath_prepend(tmp_path / "code")
    name, data = "own_sets:OwnSetsStripes", tmp_path / "data"
    with pytest.raises(UserError, match="takes no option 'ignore'; it takes: count"):
        sets.prepare(name, data, ignore=[3])
    made = sets.prepare(name, data, count=5)
    opened = sets.open_set(name, data)
    assert opened.directory == data / "own_sets.OwnSetsStripes" / "2.1.0"
    assert opened.class_names == ("left", "right")
    assert opened.palette.shape == (2, 3)
    assert opened.splits == {"train": 5, "val": 5}
    assert sets.verify(name, data).fingerprint == made.fingerprint
    (example,) = opened.records("val").decoded([0])
    assert example["image"].shape == (24, 32, 3)
    assert set(example["label"][1]) == {0, 1}
    with pytest.raises(UserError, match=r"how many classes .*--num_classes"):
        known_classes(name)


def test_a_builder_that_cannot_be_prepared_is_named(tmp_path, monkeypatch):
    write_module(tmp_path, "own_faults")
    monkeypatch.syspath_prepend(tmp_path / "code")
    for attribute, wanted in (
        ("nothing", "the argument names .* is no builder class: derive it from"),
        ("Nothing", 'the argument names .* has no "Nothing"; did you mean "nothing"'),
    ):
        with pytest.raises(UserError, match=wanted):
            sets.prepare(f"own_faults:{attribute}", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_config_that_names_no_module_is_named(tmp_path):
    config = configuration.default()
    config.data.name = "no_such_module:Builder"
    with pytest.raises(UserError, match=r"config\.data\.name names .* no module \"no_such_module"):
        RunData(config.data)


def test_a_run_that_names_no_module_is_named(tmp_path):
    config = configuration.default()
    config.data.name = "no_such_module:Builder"
    (tmp_path / "config.json").write_text(configuration.to_json(config))
    where = rf"{tmp_path / 'config.json'}: config\.data\.name"
    with pytest.raises(UserError, match=rf"{where} names .* no module \"no_such_module"):
        kdjax.evaluate(tmp_path)


def test_a_run_on_a_builder_of_a_user_by_the_commands(tmp_path, monkeypatch):
    write_module(tmp_path, "own_run")
    monkeypatch.syspath_prepend(tmp_path / "code")
    name, data = "own_run:OwnRunStripes", tmp_path / "data"
    sets.prepare(name, data)
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
