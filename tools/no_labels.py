"""Scores students that were trained without labels on labeled images, beside students with labels.

python -m tools.no_labels --labeled runs/lite0_cached --output docs/results/no_labels.csv \\
    --unlabeled "DIST, no labels=runs/no_labels"

The first folder holds runs as METHOD/seedN, the others as seedN. `python -m tools.comparison`
prints the table.
"""

import argparse
import dataclasses
import pathlib

from kdjax.config import read
from kdjax.experiment.scoring import score_checkpoint
from kdjax.experiment.workdir import Workdir
from kdjax.reporting.results import RunSummary, write_runs
from kdjax.utils import config_file

CONFIG = "configs/camvid_lite.py:lite0_cached"


def main() -> None:
    """Writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labeled", required=True, help="a comparison")
    parser.add_argument("--unlabeled", required=True, nargs="+", help="METHOD=FOLDER, several")
    parser.add_argument("--output", required=True, help="the CSV")
    given = parser.parse_args()
    options = read(config_file.read(CONFIG))
    splits = ("val", "test", "test/unseen")
    found: dict[str, list[RunSummary]] = {split: [] for split in splits}
    teacher = Workdir(pathlib.Path(given.labeled, "scores", "teacher"))
    score_checkpoint(options, teacher, options.teacher.checkpoint, "teacher")
    finished = [*pathlib.Path(given.labeled).glob("*/seed*/result.json")]
    runs = [teacher, *(Workdir(path.parent) for path in sorted(finished))]
    for run in runs:
        for split in splits:
            found[split].append(run.summary(split))
    unlabeled = [
        (method, path)
        for method, _, folder in (words.partition("=") for words in given.unlabeled)
        for path in sorted(pathlib.Path(folder).glob("seed*/result.json"))
    ]
    for method, path in unlabeled:
        scored = Workdir(path.parent.parent / "scores" / path.parent.name)
        score_checkpoint(options, scored, str(path.parent), "distilled")
        own = Workdir(path.parent).summary("val")
        for split in splits:
            miou = scored.summary(split)
            found[split].append(
                dataclasses.replace(
                    own,
                    method=method,
                    miou=miou.miou,
                    pixel_accuracy=miou.pixel_accuracy,
                    class_iou=miou.class_iou,
                    agreement=None,
                )
            )
    write_runs(given.output, found, [f"class_{number}" for number in range(11)])


if __name__ == "__main__":
    main()
