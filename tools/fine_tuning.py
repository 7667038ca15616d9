"""Compares ways of fine-tuning from ImageNet weights, on validation.

python -m tools.fine_tuning --workdir runs/fine_tuning --parallel 2 docs/results/fine_tuning.csv

Every run is the plain student of configs/camvid_lite.py:lite0 with one change. The same command
continues what was stopped. `python -m tools.comparison` prints the table of the CSV.
"""

import argparse
import pathlib
from collections.abc import Sequence

from kdjax.comparison.parallel import train_all
from kdjax.config import Config, read, without_terms
from kdjax.data.run_data import RunData
from kdjax.experiment.run import Run
from kdjax.experiment.workdir import Workdir
from kdjax.reporting.results import write_runs
from kdjax.utils import config_file, environment

CONFIG = "configs/camvid_lite.py:lite0"

# By name, the changes to the recipe.
WAYS: dict[str, dict[str, object]] = {
    "as the recipe": {},
    "rate 3e-4": {"optimizer.learning_rate": 3e-4},
    "rate 1.2e-3": {"optimizer.learning_rate": 1.2e-3},
    "heads times 3": {"optimizer.head_multiplier": 3.0},
    "heads times 1": {"optimizer.head_multiplier": 1.0},
    "heads times 1, rate 2e-3": {
        "optimizer.head_multiplier": 1.0,
        "optimizer.learning_rate": 2e-3,
    },
    "no warm-up": {"optimizer.warmup_steps": 0},
    "warm-up of 100": {"optimizer.warmup_steps": 100},
    "decay 0.05": {"optimizer.weight_decay": 0.05},
    "batch norm frozen": {"student.batch_norm": "frozen"},
    "colors changed": {"data.photometric": True},
    **{
        f"SGD, rate {rate}": {
            "optimizer.name": "sgd",
            "optimizer.learning_rate": rate,
            "optimizer.weight_decay": 5e-4,
        }
        for rate in (0.003, 0.01, 0.03)
    },
}


def plan(workdir: pathlib.Path, way: str, seed: int) -> Run:
    """Plans a run that never sees the test split."""
    config: Config = without_terms(config_file.read(CONFIG))
    with config.unlocked():
        config.seed, config.eval_every = seed, config.steps
        config.data.test_split = config.teacher.checkpoint = ""
        config.update_from_flattened_dict(WAYS[way])
    files = Workdir(str(workdir / way / f"seed{seed}"))
    return Run(read(config, tuning=True), files, f"{way}, seed {seed}", way, "plain")


def main(workdir: pathlib.Path, seeds: Sequence[int], parallel: int, csv: pathlib.Path) -> None:
    """Trains the runs that are not finished, and writes the scores of all."""
    environment.set_up_jax()
    # Ordered by seed, so that the first results compare all ways.
    runs = [plan(workdir, way, seed) for seed in seeds for way in WAYS]
    train_all(runs, parallel)
    runs.sort(key=lambda run: list(WAYS).index(run.method))
    names = RunData(runs[0].options.data).class_names
    write_runs(csv, {"val": [run.files.summary("val") for run in runs]}, names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=pathlib.Path)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", default="1000,1001")
    parser.add_argument("--parallel", type=int, default=1)
    given = parser.parse_args()
    main(given.workdir, [int(seed) for seed in given.seeds.split(",")], given.parallel, given.csv)
