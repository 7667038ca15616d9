"""Made-up results of runs, for the tests of tables and reports."""

import numpy as np

from kdjax.reporting.results import Example, Report, RunSummary

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)


def run(method, role, seed, miou, **changes):
    history = [{"step": s, "train/loss": 2.0 / s, f"train/{method}": 1.0} for s in range(1, 251)]
    history += [{"step": 250, "val/miou": miou, "val/pixel_accuracy": 0.9}]
    values = {
        "steps": 250,
        "learning_rate": 0.05,
        "pixel_accuracy": 0.75,
        "class_iou": [0.9, 0.3, float("nan")],
        "parameters": 812_345,
        "seconds": 64.6,
        "images_per_second": 123.4,
        "step_flops": 2.5e9,
        "step_bytes": 3 * 2**29,
        "agreement": None if role == "teacher" else 0.8,
        "history": history,
    }
    return RunSummary(method=method, role=role, seed=seed, miou=miou, **{**values, **changes})


def report(runs, **changes):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (12, 16)).astype(np.uint8)
    label[0] = 255
    image = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    values = {
        "title": "A <title>",
        "subtitle": "made up",
        "split": "val",
        "class_names": ["sky", "<script>alert(1)</script>", "$\\frac$ & 道"],
        "palette": PALETTE,
        "examples": [Example(image=image, label=label, predictions={"cwd": label})],
        "config": "weight: <3>",
        "versions": {"jax": "0.10.2"},
        "command": "python -m kdjax compare",
    }
    return Report(runs=runs, **{**values, **changes})
