"""Converts a data set's original files to records, once, and prints what came of it.

python -m kdjax.prepare folder --source DIR --data_dir data --ignore 11
python -m kdjax.prepare shapes
"""

import time

from absl import flags

from kdjax import command
from kdjax.data import sets, statistics
from kdjax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "Folder with the original files.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where prepared sets are kept.")
_IGNORE = flags.DEFINE_multi_string(
    "ignore", [], "Label value to ignore, as 255 always is; repeatable, or several with commas."
)


def main(argv: list[str]) -> None:
    """Prepares the data set that the one argument names."""
    if len(argv) != 2:
        raise UserError("name one data set: python -m kdjax.prepare NAME --source DIR")
    began = time.monotonic()
    # Only named where given, since most data sets say themselves what is ignored.
    options = {"ignore": _label_values(_IGNORE.value)} if _IGNORE.value else {}
    done = "was there already" if sets.is_prepared(argv[1], _DATA_DIR.value) else "is prepared"
    dataset = sets.prepare(argv[1], _DATA_DIR.value, source=_SOURCE.value, **options)
    seconds = time.monotonic() - began
    print(f"{dataset.name} {done}, in {dataset.directory} ({seconds:.1f} s)\n")
    print(_summary(dataset))


def _label_values(texts: list[str]) -> list[int]:
    values = [value.strip() for text in texts for value in text.split(",")]
    if wrong := [value for value in values if not value.isdecimal()]:
        raise UserError(f"--ignore {wrong[0]}: give label values, such as --ignore 11 or 0,11")
    return sorted({int(value) for value in values})


def _summary(dataset: sets.PreparedSet) -> str:
    measured = {split: statistics.measure(dataset, split) for split in dataset.splits}
    width = max(map(len, (*dataset.class_names, "standard deviation")))

    def row(title: str, cells: list[str]) -> str:
        return "  ".join([f"{title:<{width}}", *(f"{cell:>13}" for cell in cells)])

    splits = list(measured.values())
    lines = [
        row("", list(measured)),
        row("images", [f"{split.num_examples}" for split in splits]),
        row("smallest", ["{} x {}".format(*split.smallest[::-1]) for split in splits]),
        row("largest", ["{} x {}".format(*split.largest[::-1]) for split in splits]),
        row("mean RGB", [_triple(split.mean) for split in splits]),
        row("standard deviation", [_triple(split.std) for split in splits]),
        "",
        row("ignored pixels", [f"{split.ignored_share:.2%}" for split in splits]),
        "of the others:",
    ]
    for index, name in enumerate(dataset.class_names):
        lines.append(row(name, [f"{split.class_shares[index]:.2%}" for split in splits]))
    return "\n".join(lines)


def _triple(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


if __name__ == "__main__":
    command.run(main)
