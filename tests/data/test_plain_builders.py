"""Builders of a user that know nothing of kdjax."""

import sys

import pytest

from kdjax.data import sets
from kdjax.data.preparing.classes import known_classes
from kdjax.utils.errors import UserError

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
def plain_faults(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain_faults")
    source = write_module(root, "plain_faults")
    sys.path.insert(0, str(root / "code"))
    yield source
    sys.path.remove(str(root / "code"))


def test_a_plain_builder_is_prepared_and_opened(tmp_path, monkeypatch):
    source = write_module(tmp_path, "plain_sets")
    monkeypatch.syspath_prepend(tmp_path / "code")
    name, data = "plain_sets:PlainSetsStripes", tmp_path / "data"
    with pytest.raises(UserError, match=rf"prepare {name} --source DIR --data_dir"):
        sets.open_set(name, data)
    with pytest.raises(UserError, match="name their folder by --source"):
        sets.prepare(name, data)
    with pytest.raises(UserError, match="takes no option 'ignore'; it takes: none"):
        sets.prepare(name, data, source=source, ignore=[3])
    made = sets.prepare(name, data, source=source)
    opened = sets.open_set(name, data)
    assert opened.directory == data / "plain_sets.PlainSetsStripes" / "2.1.0"
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
        ("PlainFaultsUnlabelled", "names no classes: make the label a tfds.features.LabeledImage"),
        ("PlainFaultsColored", r"feature 'label', .* of shape \(None, None, 1\); it has Image"),
        ("PlainFaultsNameless", "feature 'name', a tfds.features.Text"),
        ("PlainFaultsWide", "an image of 40 x 24 pixels and a label of 32 x 24"),
        ("PlainFaultsHigh", r"holds the value 2; allowed are 0\.\.1 and 255"),
        ("PlainFaultsSeveral", "has several BUILDER_CONFIGS: name a subclass"),
        ("nothing", "the argument names .* is no builder class: derive it from"),
        ("Nothing", 'the argument names .* has no "Nothing"; did you mean "nothing"'),
    ],
)
def test_a_plain_builder_that_does_not_fit_is_refused(plain_faults, tmp_path, attribute, wanted):
    with pytest.raises(UserError, match=wanted):
        sets.prepare(f"plain_faults:{attribute}", tmp_path / "data", source=plain_faults)
    assert not list(tmp_path.glob("data/*/*/*"))
