"""Reads crops of large photos from whole JPEG files and from PNG tiles.

    python -m benchmarks.large_photos --source PHOTOS --rounds 15

PHOTOS is a folder of photos, which are enlarged to 3,000 x 4,000 pixels and stored as JPEG. A round
reads 8 crops of 512 x 512 from each set, one after the other, without keeping decoded photos.
"""

import functools
import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks.rounds import machine, table, timed
from kdjax.data import sets
from kdjax.data._tensorflow import tf
from kdjax.data.loading.augment import augment
from kdjax.data.loading.records import Records
from kdjax.data.loading.sampling import AugmentOptions, draw
from kdjax.data.loading.sources import Mixture, Part

_SOURCE = flags.DEFINE_string("source", None, "Folder of photos.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds.")
PHOTOS, SIZE, CROPS = 12, (3000, 4000), 8
OPTIONS = AugmentOptions((512, 512), photometric=False)


def main(argv: list[str]) -> None:
    """Prints the milliseconds of a round, and the ratio of both sets."""
    del argv
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        _write_photos(folder / "photos")
        calls = {}
        for name, tiles in (("JPEG files", False), ("PNG tiles", True)):
            started = time.perf_counter()
            data = sets.prepare("folder", folder / name, source=folder / "photos", tiles=tiles)
            size = sum(path.stat().st_size for path in data.directory.rglob("*")) / 2**20
            print(f"{name}: {size:.0f} MiB, prepared in {time.perf_counter() - started:.0f} s")
            calls[name] = functools.partial(_read, data.records("train"))
        print(table(timed(calls, _ROUNDS.value), CROPS), machine(), sep="\n\n")


def _read(records: Records) -> None:
    source = Mixture([Part(records)])
    draws = draw(OPTIONS, 0, range(CROPS))
    indices = np.arange(CROPS) % len(records)
    fetched = source.fetch(tf.constant(indices))
    for row in range(CROPS):
        one = type(fetched)(*(value[row] for value in fetched))
        label, read_window = source.decode(one)
        own = type(draws)(*(value[row] for value in draws))
        augment(read_window, label, own, OPTIONS)


def _write_photos(folder: pathlib.Path) -> None:
    found = [path for path in sorted(pathlib.Path(_SOURCE.value).rglob("*")) if path.is_file()]
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    columns = np.arange(SIZE[1]) * 4 // SIZE[1]
    label = Image.fromarray(np.tile(columns.astype(np.uint8), (SIZE[0], 1)))
    for number, path in enumerate(found[:PHOTOS]):
        with Image.open(path) as image:
            photo = image.convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
        photo.save(folder / "images" / f"{number}.jpg", quality=90)
        label.save(folder / "labels" / f"{number}.png")


if __name__ == "__main__":
    app.run(main)
