"""Draws the pictures of docs/methods: what each method compares in one scene of `shapes`.

    python -m kdjax compare --config configs/shapes_pspnet_r18.py --workdir runs/shapes
    python -m tools.pictures --workdir runs/shapes

The first command trains the networks. The second reads the teacher and the plain student, and takes
seconds.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kdjax import losses
from kdjax.data.run_data import RunData
from kdjax.losses import resize_labels
from kdjax.reporting.figures import COLORS
from tools.fakd_figures import fakd, fakd_bounds
from tools.figure_parts import (
    colored,
    grid,
    mark,
    show_image,
    show_map,
    show_signed,
)
from tools.scenes import (
    Scene,
    class_statistics,
    forward,
    load,
    main_class,
    marked_pixels,
    pixel,
)

METHODS = Path(__file__).resolve().parent.parent / "docs" / "methods"

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def main() -> None:
    """Reads the networks and draws every picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a kdjax.compare on shapes")
    parser.add_argument("--data_dir", help="by default that of the training")
    parser.add_argument("--scene", type=int, default=36, help="its number in the val split")
    flags = parser.parse_args()

    config, images, teacher, student = load(flags.workdir, flags.data_dir)
    batches = images.eval_batches(config.val_split)
    index, place = divmod(flags.scene, config.eval_batch_size)
    batch = next(itertools.islice(batches, index, None))
    image, label = batch["image"][place], batch["label"][place]
    outputs = [forward(network)(image[None]) for network in (teacher, student)]
    small = np.asarray(resize_labels(jnp.asarray(label[None]), outputs[0].logits.shape[1:3]))[0]
    scene = Scene(image, label, small, *outputs)
    statistics = class_statistics(student, images.eval_batches(config.train_split))

    pictures: dict[str, Callable[[], Figure]] = {
        "cwd": lambda: cwd(scene, images),
        "nfd": lambda: nfd(scene, images),
        "pfs": lambda: pfs(scene, images),
        "pfs_gap": lambda: gap(scene, images),
        "fakd": lambda: fakd(scene, images, statistics),
        "fakd_bounds": lambda: fakd_bounds(scene, images, statistics),
    }
    for name, draw in pictures.items():
        with matplotlib.rc_context(STYLE):
            path = METHODS / f"{name}.png"
            draw().savefig(path, dpi=120, metadata={"Software": None})
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def cwd(scene: Scene, images: RunData) -> Figure:
    """Draws the softmax of a channel over the pixels, at two temperatures."""
    channel = main_class(scene)
    name = images.class_names[channel]
    figure, axes = grid(2, 4)
    show_image(axes[0, 0], scene.image, "image")
    show_image(axes[1, 0], colored(scene.label, images), "label")
    for row, temperature in zip(axes[:, 1:], (1.0, 4.0), strict=True):
        q, p = (np.asarray(share(x[0, ..., channel] / temperature)) for x in scene.logits)
        value = losses.cwd(*scene.logits, temperature=temperature)[0, channel]
        top = p.size * max(p.max(), q.max())
        show_map(row[0], p.size * p, f"p: teacher’s “{name}”, τ = {temperature:g}", 0, top)
        show_map(row[1], q.size * q, f"q: student’s, τ = {temperature:g}", 0, top)
        show_signed(row[2], p * np.log(p / q), f"p log(p/q), loss {value:.2f}")
    return figure


def nfd(scene: Scene, images: RunData) -> Figure:
    """Draws two channels that differ in scale, before and after normalization."""
    raw = [np.asarray(output.features["head"][0]) for output in (scene.student, scene.teacher)]
    normal = [(x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5) for x in raw]
    correlations = np.einsum("hws,hwt->st", *normal) / scene.small.size
    # The networks do not order their channels alike. Take a pair that is correlated but differs
    # in scale.
    student_scale, teacher_scale = (np.log(x.std((0, 1)) + 1e-3) for x in raw)
    unlike = np.abs(student_scale[:, None] - teacher_scale)
    pair = pixel(np.where(correlations > 0.8, unlike, -np.inf))
    figure, axes = grid(2, 4)
    show_image(axes[0, 0], scene.image, "image")
    show_image(axes[1, 0], colored(scene.label, images), "label")
    for row, maps in zip(axes[:, 1:], (raw, normal), strict=True):
        student, teacher = (x[..., channel] for x, channel in zip(maps, pair, strict=True))
        low, high = min(student.min(), teacher.min()), max(student.max(), teacher.max())
        for axis, values, who in zip(row, (teacher, student), ("teacher", "student"), strict=False):
            if maps is raw:
                show_map(axis, values, f"channel of the {who}", 0, high)
            else:
                show_signed(axis, values, f"{who}, normalized", max(-low, high))
        edges = (low - 0.05 * (high - low), high + 0.05 * (high - low))
        row[2].axline((0, 0), slope=1, color="0.6", lw=1)
        row[2].scatter(teacher, student, s=8, color=COLORS[0], linewidths=0)
        row[2].set(xlim=edges, ylim=edges, box_aspect=1, xlabel="teacher", ylabel="student")
    axes[0, 3].set_title("pixel by pixel")
    correlation = correlations[pair]
    axes[1, 3].set_title(f"ρ {correlation:.2f}, loss {2 * (1 - correlation):.2f}")
    return figure


def pfs(scene: Scene, images: RunData) -> Figure:
    """Draws the cosines of three pixels with all others."""
    maps = [np.asarray(output.features["head"][0]) for output in (scene.teacher, scene.student)]
    units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in maps]
    stride = len(scene.label) // len(scene.small)
    figure, axes = grid(3, 4)
    show_image(axes[0, 0], scene.image, "image, three pixels")
    show_image(axes[1, 0], colored(scene.label, images), "label")
    axes[2, 0].set_axis_off()
    for name, place, column in zip("abc", marked_pixels(scene), axes[:, 1:].T, strict=True):
        teacher, student = (np.einsum("hwc,c->hw", x, x[place]) for x in units)
        show_map(column[0], teacher, f"teacher: cosine with {name}", 0, 1)
        show_map(column[1], student, f"student: cosine with {name}", 0, 1)
        distance = np.mean((student - teacher) ** 2)
        show_signed(column[2], student - teacher, f"student − teacher, MSE {distance:.3f}", 0.6)
        for axis in column:
            mark(axis, place, name)
        mark(axes[0, 0], tuple((x + 0.5) * stride for x in place), name)
    return figure


def gap(scene: Scene, images: RunData) -> Figure:
    """Draws the divergence at every pixel, the gap between the networks, and their product."""
    student, teacher = scene.logits
    truth = np.eye(student.shape[-1], dtype=bool)[scene.small]
    p, q = (np.asarray(jax.nn.softmax(x))[0][truth] for x in (teacher, student))
    ahead = (p - q).reshape(scene.small.shape)
    plain = np.asarray(losses.pixelwise_kl(student, teacher))[0]
    weighted = np.asarray(losses.gap_weighted_kl(student, teacher, jnp.asarray(scene.small[None])))[
        0
    ]
    figure, axes = grid(2, 4)
    show_image(axes[0, 0], scene.image, "image")
    show_image(axes[0, 1], colored(scene.label, images), "label")
    for axis, logits, who in zip(
        axes[0, 2:], (teacher, student), ("teacher", "student"), strict=True
    ):
        show_image(axis, colored(np.argmax(logits[0], -1), images), f"{who}'s prediction")
    show_map(axes[1, 0], plain, f"KL, mean {plain.mean():.3f}", 0, plain.max())
    show_signed(axes[1, 1], ahead, "p[y] − q[y]", 1)
    show_map(axes[1, 2], np.maximum(ahead, 0), "gap: that, or 0", 0, 1)
    show_map(axes[1, 3], weighted, f"gap × KL, mean {weighted.mean():.3f}", 0, plain.max())
    return figure


def share(scores: jax.Array) -> jax.Array:
    """Returns the softmax over all entries."""
    return jax.nn.softmax(scores, axis=(0, 1))


if __name__ == "__main__":
    main()
