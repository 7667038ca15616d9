"""Made-up examples of the sizes of well-known data sets, as files and as records."""

import os
import pathlib

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from kdjax.data._tensorflow import tf
from kdjax.data.loading.records import FileRecords
from kdjax.data.preparing.image_io import encode_png, read_photo, read_values

# Height, width and file type of the images.
SIZES = {"cityscapes": (1024, 2048, ".png"), "ade20k": (512, 683, ".jpg")}


# An image and its label.
Pair = tuple[pathlib.Path, pathlib.Path]


def write(directory: pathlib.Path, kind: str, count: int) -> list[Pair]:
    """Writes `count` examples and returns the paths of each one's image and label.

    Blurred noise with a little grain, which compresses about as photographs do (a Cityscapes PNG
    has 2.3 MB), over labels of flat patches.
    """
    directory.mkdir(parents=True, exist_ok=True)
    height, width, suffix = SIZES[kind]
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = cv2.resize(rng.integers(0, 256, (12, 24, 3), np.uint8), (width, height))
        grain = rng.normal(0, 1.5, image.shape)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
        patches = rng.integers(0, 19, (16, 32), np.uint8)
        label = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
        pair = directory / f"{number}{suffix}", directory / f"{number}_label.png"
        cv2.imwrite(str(pair[0]), image)
        cv2.imwrite(str(pair[1]), label)
        paths.append(pair)
    return paths


def as_records(
    paths: list[Pair], file: pathlib.Path, repeats: int = 1, *, tiled: bool = False
) -> FileRecords:
    """Writes the files into a record file as `kdjax prepare` does, all of them `repeats` times."""

    def converted(image: pathlib.Path, label: pathlib.Path) -> bytes:
        photo = read_photo(image)
        example = {
            "image": photo.encode_tiles() if tiled else [photo.encode()],
            "label": [encode_png(read_values(label))],
            "name": [image.stem.encode()],
        }
        features = {
            key: tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
            for key, value in example.items()
        }
        message = tf.train.Example(features=tf.train.Features(feature=features))
        return message.SerializeToString()

    records = [converted(*pair) for pair in paths] * repeats
    # Each record alone, as TFDS writes them: PNG and JPEG are compressed already.
    writer = ArrayRecordWriter(os.fspath(file), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    return FileRecords([str(file)], len(records), "train")
