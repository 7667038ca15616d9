"""Converts the original files of a data set to records, and prints a summary.

python -m kdjax prepare folder --source DIR --data_dir data/mine --colors colors.csv --ignore Void
python -m kdjax prepare cityscapes --source DIR --data_dir data

`folder` converts images of your own. `shapes` generates scenes and needs no source.
"""

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from kdjax.data import sets
from kdjax.data.preparing import prepared
from kdjax.data.preparing.prepared import PreparedSet
from kdjax.reporting import figures
from kdjax.utils.bands import RGB
from kdjax.utils.classes import UNLABELLED
from kdjax.utils.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "Folder or archive with the original files.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of prepared sets.")
_IGNORE = flags.DEFINE_multi_string(
    "ignore",
    [],
    "folder: labels to ignore: values, names, colors as #000000, with commas.",
)
_IGNORE_UNKNOWN = flags.DEFINE_bool(
    "ignore_unknown", False, "folder: ignore label values and colors of no class."
)
_COLORS = flags.DEFINE_string(
    "colors",
    None,
    "folder: table of class colors: CSV (name,r,g,b), JSON, CamVid, or CVAT.",
)
_CLASSES = flags.DEFINE_integer(
    "classes", None, "pascal_context: 59 classes, or 60 with background."
)
_VAL_SHARE = flags.DEFINE_float(
    "val_share",
    None,
    "folder without splits: share to validate on (0.2 if neither share is given).",
)
_TEST_SHARE = flags.DEFINE_float("test_share", None, "folder without splits: the share to test on.")
_RGB = flags.DEFINE_string(
    "rgb", None, "folder of band images: bands shown as red, green, blue, as 3,2,1 (0,1,2)."
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", None, "folder: make images whose longer side is above this smaller."
)
_UNLABELLED = flags.DEFINE_bool(
    "unlabelled",
    False,
    "folder: images without labels, anywhere under the source, for distillation.",
)
_TILES = flags.DEFINE_bool(
    "tiles",
    False,
    "Store PNG tiles, of which a crop decodes a part. Small JPEGs stay as they are.",
)
_SKIP_DAMAGED = flags.DEFINE_bool(
    "skip_damaged", False, "Skip damaged files and list them. By default, the first is an error."
)
flags.DEFINE_alias("skip-damaged", "skip_damaged")
_VERIFY = flags.DEFINE_bool("verify", False, "Only check a prepared set.")

_SAMPLES = 4  # in the picture


def main(argv: list[str]) -> None:
    """Prepares the data set that the one argument names."""
    if len(argv) != 2:
        raise UserError("name one data set: python -m kdjax prepare NAME --source DIR")
    began = time.monotonic()
    if _VERIFY.value:
        done, dataset = "has not changed", sets.verify(argv[1], _DATA_DIR.value, **_options())
    else:
        done = (
            "was prepared before" if sets.is_prepared(argv[1], _DATA_DIR.value) else "is prepared"
        )
        dataset = _prepare(argv[1])
    seconds = time.monotonic() - began
    print(f"{dataset.name} {done}, in {dataset.directory} ({seconds:.1f} s)\n")
    print(_summary(dataset))
    print(f"\nfingerprint {dataset.fingerprint}")
    if not _VERIFY.value:
        print(f"samples in {_draw_samples(dataset)}")
    if dataset.skipped:
        print(f"\nskipped {len(dataset.skipped)} damaged images:", *dataset.skipped, sep="\n")


def _options() -> dict[str, Any]:
    # Few data sets take these options, so only those given are passed on.
    options: dict[str, Any] = {}
    if _IGNORE.value:
        options["ignore"] = _ignored(_IGNORE.value)
    if _IGNORE_UNKNOWN.value:
        options["ignore_unknown"] = True
    if _COLORS.value is not None:
        options["colors"] = os.path.realpath(os.path.expanduser(_COLORS.value))
    if _CLASSES.value is not None:
        options["classes"] = _CLASSES.value
    for flag in (_VAL_SHARE, _TEST_SHARE):
        if flag.value is not None:
            options[flag.name] = flag.value
    if _RGB.value is not None:
        options["rgb"] = _parse_rgb(_RGB.value)
    if _MAX_SIDE.value is not None:
        options["max_side"] = _MAX_SIDE.value
    if _UNLABELLED.value:
        options["unlabelled"] = True
    if _TILES.value:
        options["tiles"] = True
    return options


def _parse_rgb(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--rgb {text}: name three bands by their numbers, as 2,1,0")
    return [int(word) for word in words]


def _prepare(name: str) -> PreparedSet:
    return sets.prepare(
        name,
        _DATA_DIR.value,
        source=_SOURCE.value,
        skip_damaged=_SKIP_DAMAGED.value,
        report=lambda line: print(line, flush=True),
        **_options(),
    )


def _ignored(texts: list[str]) -> list[int | str]:
    words = {word.strip() for text in texts for word in text.split(",")} - {""}
    values = {int(word) for word in words if word.isdecimal()}
    return [*sorted(values), *sorted(word for word in words if not word.isdecimal())]


def _summary(dataset: PreparedSet) -> str:
    measured = {split: prepared.measure_split(dataset, split) for split in dataset.splits}
    width = max(map(len, (*dataset.class_names, "standard deviation")))

    def row(title: str, cells: list[str]) -> str:
        return "  ".join([f"{title:<{width}}", *(f"{cell:>13}" for cell in cells)])

    splits = list(measured.values())
    lines = [
        row("", list(measured)),
        row("images", [f"{split.num_examples}" for split in splits]),
        row("smallest", ["{} x {}".format(*split.smallest[::-1]) for split in splits]),
        row("largest", ["{} x {}".format(*split.largest[::-1]) for split in splits]),
        *_statistics(dataset, splits, row),
        "",
        row("ignored pixels", [f"{split.ignored_share:.2%}" for split in splits]),
    ]
    if dataset.class_names == (UNLABELLED,):
        return "\n".join(lines)
    lines.append("of the others:")
    for index, name in enumerate(dataset.class_names):
        lines.append(row(name, [f"{split.class_shares[index]:.2%}" for split in splits]))
    return "\n".join(lines)


def _draw_samples(dataset: PreparedSet) -> pathlib.Path:
    """Draws evenly spread examples of the first split to a file in the folder of the set."""
    records = dataset.records(next(iter(dataset.splits)))
    indices = np.linspace(0, len(records) - 1, min(_SAMPLES, len(records))).round().astype(int)
    examples = [
        {**example, "image": dataset.bands.picture(example["image"])}
        for example in records.decoded(indices.tolist())
    ]
    path = dataset.directory / "samples.png"
    figures.samples(examples, dataset.class_names, dataset.palette).savefig(path)
    return path


def _statistics(
    dataset: PreparedSet,
    splits: Sequence[prepared.SplitStatistics],
    row: Callable[[str, list[str]], str],
) -> list[str]:
    """Returns the mean and the deviation of the colors of photos, or of each other band."""
    if dataset.bands == RGB:
        return [
            row("mean RGB", [_triple(split.mean) for split in splits]),
            row("standard deviation", [_triple(split.std) for split in splits]),
        ]
    return [
        row(f"band {band}", [f"{s.mean[band]:.4g} ± {s.std[band]:.4g}" for s in splits])
        for band in range(dataset.bands.channels)
    ]


def _triple(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.0f}" for value in values)
