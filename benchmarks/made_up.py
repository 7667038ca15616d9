"""Made-up examples of the sizes of well-known data sets, as files and as records."""

import itertools
import pathlib

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np

from kdjax.data.loading.records import Records
from kdjax.data.preparing.builder import encode_png
from kdjax.data.preparing.image_io import read_photo, read_values
from kdjax.data.preparing.prepared import write_shard
from kdjax.data.preparing.tree import File

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
) -> Records:
    """Writes the files into a record file as `kdjax prepare` does, all of them `repeats` times."""

    def converted(image: pathlib.Path, label: pathlib.Path) -> dict[str, bytes | list[bytes]]:
        photo = read_photo(File.on_disk(image))
        return {
            "image": photo.encode_tiles() if tiled else photo.encode(),
            "label": encode_png(read_values(File.on_disk(label))),
            "name": image.stem.encode(),
        }

    examples = [converted(*pair) for pair in paths]
    count, _ = write_shard(file, itertools.chain.from_iterable([examples] * repeats))
    return Records([str(file)], count, "train")
