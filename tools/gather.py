"""Gathers finished runs as the CSV of a comparison.

python -m tools.gather "from noise=runs/from_noise" pretrained=runs/pretrained \\
    --output docs/results/pretraining.csv

Each folder holds runs as seedN. The first method is the one that the others are compared with.
`python -m tools.comparison` prints the table.
"""

import argparse
import dataclasses
import pathlib

from kdjax.experiment.workdir import Workdir
from kdjax.reporting.results import RunSummary, write_runs


def main() -> None:
    """Writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="+", metavar="METHOD=FOLDER")
    parser.add_argument("--output", required=True, help="the CSV")
    parser.add_argument("--splits", nargs="+", default=["val", "test", "test/unseen"])
    given = parser.parse_args()
    found: dict[str, list[RunSummary]] = {split: [] for split in given.splits}
    for place, words in enumerate(given.methods):
        method, _, folder = words.partition("=")
        for path in sorted(pathlib.Path(folder).glob("seed*/result.json")):
            for split in given.splits:
                summary = Workdir(path.parent).summary(split)
                role = "distilled" if place else "plain"
                found[split].append(dataclasses.replace(summary, method=method, role=role))
    classes = len(found[given.splits[0]][0].class_iou)
    write_runs(given.output, found, [f"class_{number}" for number in range(classes)])


if __name__ == "__main__":
    main()
