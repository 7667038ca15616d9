"""The scores of `kdjax.evaluate` next to those of Cityscapes' own evaluator.

    python -m benchmarks.cityscapes_scores --cityscapes-python PATH

PATH is the Python of an environment with cityscapesscripts 2.3.0 (which needs numpy below 2.4 and
pillow below 12); kdjax is not needed there. Labels and predictions are made up: three classes
occur in neither, one only in predictions; one image has a single class, another only ignored
pixels. The predictions are written as `kdjax.predict --ids cityscapes` writes them.

Prints the largest difference of an IoU and that of mIoU, and exits with 1 beyond 1e-6.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np
from PIL import Image

from kdjax.data.preparing.classes import builder_folder
from kdjax.evaluation.evaluator import Scores, evaluate
from kdjax.reporting.pictures import full_palette, label_png
from kdjax.utils.classes import read_table

BAR = 1e-6
SIZE = (64, 96)
IMAGES, CLASSES, IGNORED = 8, 19, 255
ABSENT, ONLY_PREDICTED = (3, 11, 15), 17
# The official evaluator on pixels alone: instances need files that evaluation does not.
OFFICIAL = """
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
official.args.evalInstLevelScore = False
official.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cityscapes-python", required=True, metavar="PATH")
    python = parser.parse_args().cityscapes_python
    table = read_table(builder_folder("cityscapes") / "classes.csv")
    values = np.array([int(row["label"]) for row in table], np.uint8)
    names = [row["name"] for row in table]
    labels, predictions = made_up(np.random.default_rng(0))
    ours = evaluate(
        remembered(predictions),
        {},
        batches(labels),
        CLASSES,
        lambda batch: {key: jnp.asarray(value) for key, value in batch.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), labels, predictions, values)
        theirs = official(python, Path(folder))
    differences = compared(ours, theirs, names)
    miou = abs(ours.miou - theirs["averageScoreClasses"])
    print(f"mIoU: {ours.miou:.9f} here, {theirs['averageScoreClasses']:.9f} there")
    print(f"classes with an IoU: {len(differences)} of {CLASSES} here and there")
    print(f"largest difference of an IoU {max(differences):.1e}, of mIoU {miou:.1e}")
    sys.exit(max(*differences, miou) > BAR)


def made_up(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Train ids of labels (255 where ignored) and of predictions, uint8 [N, H, W]."""
    present = [index for index in range(CLASSES) if index not in ABSENT]
    predictions = rng.choice(present, (IMAGES, *SIZE)).astype(np.uint8)
    labels = np.where(rng.random(predictions.shape) < 0.6, predictions, rng.permuted(predictions))
    labels[labels == ONLY_PREDICTED] = IGNORED
    labels[rng.random(labels.shape) < 0.1] = IGNORED
    labels[1] = 0  # a single class
    labels[2] = IGNORED
    return labels, predictions


def remembered(predictions: np.ndarray) -> Any:
    """Stands for a network: it says what was predicted for the image of this number."""
    return lambda state, images, sizes: jnp.asarray(predictions)[images[:, 0, 0, 0]]


def batches(labels: np.ndarray, size: int = 4) -> Iterator[dict[str, np.ndarray]]:
    """Labels, with images that hold their own number."""
    for start in range(0, len(labels), size):
        rows = np.arange(start, start + size, dtype=np.uint8)
        images = np.broadcast_to(rows[:, None, None, None], (size, *SIZE, 3))
        sizes = np.full((size, 2), SIZE, np.int32)
        yield {"image": images, "label": labels[rows], "size": sizes}


def write(root: Path, labels: np.ndarray, predictions: np.ndarray, values: np.ndarray) -> None:
    """Both as the official evaluator reads them: original ids, void where a label is ignored."""
    (root / "gtFine" / "val" / "town").mkdir(parents=True)
    (root / "results").mkdir()
    originals = np.zeros(256, np.uint8)  # 0 is "unlabeled"
    originals[:CLASSES] = values
    for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        name = f"town_{index:06}_000000"
        path = root / "gtFine" / "val" / "town" / f"{name}_gtFine_labelIds.png"
        Image.fromarray(originals[label]).save(path)
        png = label_png(values[prediction], full_palette(np.zeros((0, 3), np.uint8)))
        (root / "results" / f"{name}.png").write_bytes(png)


def official(python: str, root: Path) -> dict:
    """What the official evaluator writes about the results in a folder."""
    places = {"CITYSCAPES_DATASET": str(root), "CITYSCAPES_RESULTS": str(root / "results")}
    places["CITYSCAPES_EXPORT_DIR"] = str(root)
    subprocess.run(
        [python, "-c", OFFICIAL], check=True, env={**os.environ, **places}, stdout=subprocess.PIPE
    )
    return json.loads((root / "resultPixelLevelSemanticLabeling.json").read_text())


def compared(ours: Scores, theirs: dict, names: list[str]) -> list[float]:
    """Differences of the IoU of every class that has one; both must have the same ones."""
    official = np.array([theirs["classScores"][name] for name in names], float)
    np.testing.assert_array_equal(np.isnan(official), np.isnan(ours.iou))
    return np.abs(official - ours.iou)[~np.isnan(official)].tolist()


if __name__ == "__main__":
    main()
