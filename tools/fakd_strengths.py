"""Prints FAKD's bounds and the expected loss: the table of docs/methods/fakd.md.

    python -m kdjax compare --config configs/shapes_pspnet_r18.py --workdir runs/shapes
    python -m tools.fakd_strengths --workdir runs/shapes

The numbers are means over the val split of `shapes`. The expectation is the mean over random
augmentations.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.losses import resize_labels
from tools.fakd_figures import head_loss
from tools.scenes import class_statistics, forward, load

STRENGTHS = (0.5, 1.0, 2.0, 7.5)
BOUNDS = ("student", "soft", "pairwise", "label", "none")
DRAWS = 64  # per pixel


def main() -> None:
    """Reads the networks, measures, and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a kdjax.compare on shapes")
    parser.add_argument("--data_dir", help="by default that of the training")
    flags = parser.parse_args()
    config, images, teacher, student = load(flags.workdir, flags.data_dir)
    statistics = class_statistics(student, images.eval_batches(config.train_split))
    student_of, teacher_of = forward(student), forward(teacher)

    rows = {strength: [] for strength in STRENGTHS}
    for batch in images.eval_batches(config.val_split):
        output, target = student_of(batch["image"]), teacher_of(batch["image"]).logits
        labels = resize_labels(jnp.asarray(batch["label"]), target.shape[1:3])
        for strength, row in rows.items():
            rest = (output, target, labels, statistics.covariance)
            bounds = [head_loss(*rest, strength, bound=bound).mean() for bound in BOUNDS]
            plain = losses.pixelwise_kl(output.logits, target).mean()
            row.append([plain, expectation(*rest, strength), *bounds])

    print("| strength | plain | expectation |", " | ".join(f"`{bound}`" for bound in BOUNDS), "|")
    print("| ---: " * (3 + len(BOUNDS)) + "|")
    for strength, row in rows.items():
        values = " | ".join(f"{value:.3f}" for value in np.mean(row, axis=0))
        print(f"| {strength:g} | {values} |")


@jax.jit
def expectation(output, target, labels, covariance, strength) -> jax.Array:
    """Returns the mean divergence of features with random noise."""
    head = output.classifiers["logits"]

    def draw(key):
        noise = jax.random.normal(key, head.inputs.shape) * jnp.sqrt(strength * covariance[labels])
        return losses.pixelwise_kl((head.inputs + noise) @ head.kernel + head.bias, target).mean()

    return jax.lax.map(draw, jax.random.split(jax.random.key(0), DRAWS)).mean()


if __name__ == "__main__":
    main()
