"""Folders, links and archives as sources of a set."""

import pytest
from original_trees import (
    ade20k,
    cityscapes,
    part,
    prepare,
    voc2012,
    write_tar,
    write_tree,
    write_zip,
)

from kdjax.data.builder_lookup import find_builder


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


def test_published_counts_are_reported_before_anything_is_converted(tmp_path, monkeypatch):
    builder, lines = find_builder("cityscapes"), []
    monkeypatch.setattr(builder, "PUBLISHED", {"train": 2, "val": 500})
    monkeypatch.setattr(builder, "_convert", lambda self, pair: pytest.fail("converted"))
    source = write_tree(tmp_path / "source", cityscapes())
    with pytest.raises(pytest.fail.Exception, match="converted"):
        prepare("cityscapes", source, tmp_path, report=lines.append)
    assert lines == ["train: 2 images", "val: 1 images, but 500 are published"]
