"""Draws the losses of `benchmarks.dtypes` for docs/results/bfloat16.md, one chart per file.

python -m tools.loss_curves docs/results/bfloat16/shapes.csv docs/results/bfloat16/camvid.csv \
    --output docs/results/bfloat16/loss.png
"""

import argparse
import collections
import csv
import pathlib

import numpy as np
from matplotlib.figure import Figure

COLORS = {"float32": "tab:blue", "bfloat16": "tab:orange"}
WINDOW = 10  # steps that are averaged to a point


def main() -> None:
    """Draws the files of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--output", required=True)
    asked = parser.parse_args()
    figure = Figure(figsize=(5 * len(asked.files), 3.4), layout="constrained")
    charts = figure.subplots(1, len(asked.files), squeeze=False)[0]
    for axis, path in zip(charts, asked.files, strict=True):
        losses = collections.defaultdict(list)
        with open(path) as file:
            for row in csv.DictReader(file):
                if row["figure"] == "loss":
                    losses[row["seed"], row["dtype"]].append(float(row["value"]))
        for (seed, dtype), values in losses.items():
            means = np.reshape(values[: len(values) // WINDOW * WINDOW], (-1, WINDOW)).mean(1)
            steps = WINDOW * (np.arange(len(means)) + 0.5)
            label = dtype if seed == min(seed for seed, _ in losses) else None
            axis.semilogy(steps, means, color=COLORS[dtype], label=label, alpha=0.8)
        axis.set_title(pathlib.Path(path).stem)
        axis.set_xlabel(f"step (means of {WINDOW})")
    charts[0].set_ylabel("weighted sum of the losses")
    charts[0].legend()
    figure.savefig(asked.output, dpi=100)


if __name__ == "__main__":
    main()
