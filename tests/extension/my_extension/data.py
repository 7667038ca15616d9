"""A data set: as a TFDS builder that knows nothing of kdjax, and as a list in memory."""

import numpy as np
import tensorflow_datasets as tfds

from kdjax.data import Dataset

CLASSES = ("ground", "red", "green")
EXAMPLES = {"train": 12, "val": 4}


class Stripes(tfds.core.GeneratorBasedBuilder):
    """Stripes of two colors."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.LabeledImage(labels=[*CLASSES], shape=(None, None, 1)),
            "name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in EXAMPLES}

    def _generate_examples(self, split):
        for number, example in enumerate(draw(split, 0)):
            yield number, {**example, "name": f"{split}{number}"}


def stripes(*, seed):
    """The same as arrays."""
    return Dataset({split: draw(split, seed) for split in EXAMPLES}, CLASSES)


def draw(split, seed):
    """The examples of a split: a bright stripe on noise, in one of two colors."""
    generator, examples = np.random.default_rng([seed, *split.encode()]), []
    for number in range(EXAMPLES[split]):
        label = np.zeros((32, 64, 1), np.uint8)
        left = generator.integers(0, 40)
        label[:, left : left + 24] = 1 + number % 2
        label[0] = 255
        image = generator.integers(0, 60, (32, 64, 3))
        for kind in (1, 2):
            image[..., kind - 1] += 150 * (label[..., 0] == kind)
        examples.append({"image": image.astype(np.uint8), "label": label})
    return examples
