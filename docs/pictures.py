"""Draws the pictures of docs/methods: what each method looks at in one scene of `shapes`.

    python -m kdjax.compare --config configs/shapes_pspnet_r18.py --workdir runs/shapes
    python -m docs.pictures --workdir runs/shapes

The first command trains the networks; of its workdir only `teacher/` and `plain/seed0/` are read,
so that the student that is drawn was taught by nobody. The second takes seconds.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax import config as configuration
from kdjax import losses
from kdjax.distillation.labels import nearest
from kdjax.experiments.images import Images
from kdjax.experiments.networks import Network
from kdjax.models import SegmentationOutput
from kdjax.reporting.figures import COLORS, colorize

METHODS = Path(__file__).parent / "methods"

MAGNITUDE, SIGNED = "viridis", "RdBu_r"
STRENGTH = 7.5  # ISDA's for segmentation

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene, and what both networks make of it.

    Attributes:
        image: `[H, W, 3]` uint8.
        label: `[H, W]` uint8.
        small: The labels `[h, w]` at the size of the networks' maps.
        teacher: The teacher's output, a batch of this scene alone.
        student: The student's.
    """

    image: np.ndarray
    label: np.ndarray
    small: np.ndarray
    teacher: SegmentationOutput
    student: SegmentationOutput

    @property
    def logits(self) -> tuple[jax.Array, jax.Array]:
        """The student's and the teacher's class scores, `[1, h, w, K]`."""
        return self.student.logits, self.teacher.logits


def main() -> None:
    """Reads the networks and draws every picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a kdjax.compare on shapes")
    parser.add_argument("--data_dir", help="by default where the networks were trained")
    parser.add_argument("--scene", type=int, default=36, help="which one of the val split")
    flags = parser.parse_args()

    config, images, teacher, student = load(flags.workdir, flags.data_dir)
    batches = images.eval_batches(config.val_split)
    index, place = divmod(flags.scene, config.eval_batch_size)
    batch = next(itertools.islice(batches, index, None))
    image, label = batch["image"][place], batch["label"][place]
    outputs = [forward(network)(image[None]) for network in (teacher, student)]
    small = np.asarray(nearest(jnp.asarray(label[None]), outputs[0].logits.shape[1:3]))[0]
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


def load(workdir: Path, data_dir: str | None) -> tuple[Any, Images, Network, Network]:
    """The data that a comparison used (as its config names it), its teacher and its student."""
    config = configuration.from_json((workdir / "teacher" / "config.json").read_text()).data
    config.data_dir = data_dir or config.data_dir
    teacher, student = (Network.load(str(workdir / run)) for run in ("teacher", "plain/seed0"))
    return config, Images(config), teacher, student


def forward(network: Network) -> Callable[[np.ndarray], SegmentationOutput]:
    """A network as a compiled function from 8-bit images to its whole output."""

    @jax.jit
    def run(images: np.ndarray) -> SegmentationOutput:
        net = nnx.merge(network.graphdef, network.state)
        return net(network.info.preprocessing(jnp.asarray(images)))

    return run


def class_statistics(student: Network, batches) -> losses.ClassStatistics:
    """Mean and variance of the student's last features in each class, over a split."""
    run, statistics = forward(student), None
    for batch in batches:
        features = run(batch["image"]).classifiers["logits"].inputs
        labels = nearest(jnp.asarray(batch["label"]), features.shape[1:3])
        if statistics is None:
            classes = student.info.num_classes
            statistics = losses.ClassStatistics.zeros(classes, features.shape[-1])
        statistics = statistics.update(features, labels)
    assert statistics is not None
    return statistics


def cwd(scene: Scene, images: Images) -> Figure:
    """A channel's softmax over the pixels, at two temperatures."""
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


def nfd(scene: Scene, images: Images) -> Figure:
    """Two channels that agree but for their scale, before and after normalization."""
    raw = [np.asarray(output.features["head"][0]) for output in (scene.student, scene.teacher)]
    normal = [(x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5) for x in raw]
    correlations = np.einsum("hws,hwt->st", *normal) / scene.small.size
    # Without an adapter no channel of the student stands for one of the teacher's: take a pair
    # that agrees in place and differs in scale.
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


def pfs(scene: Scene, images: Images) -> Figure:
    """The rows of the tables of cosines that belong to three pixels."""
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


def gap(scene: Scene, images: Images) -> Figure:
    """The divergence at every pixel, the gap between the networks, and their product."""
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


def fakd(scene: Scene, images: Images, statistics: losses.ClassStatistics) -> Figure:
    """How far the noise of each class moves each score, and what the bound adds to a scene."""
    kernel = np.asarray(scene.student.classifiers["logits"].kernel)
    variance = np.asarray(statistics.covariance)
    apart = kernel[:, None, :] - kernel[:, :, None]  # [A, y, j]
    spread = np.sqrt(np.einsum("ya,aj->yj", variance, kernel**2))
    added = STRENGTH / 2 * np.einsum("ya,ayj->yj", variance, apart**2)
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.45, 1))[:, 0]
    tables = above.subplots(1, 2)
    for axis, values, title in zip(
        tables,
        (spread, added),
        (
            "standard deviation of score j\namong pixels of class y",
            f"what bound “label” adds to score j\nof a pixel of class y, strength {STRENGTH:g}",
        ),
        strict=True,
    ):
        axis.imshow(values, cmap=MAGNITUDE, vmin=0)
        for y, j in np.ndindex(*values.shape):
            dark = values[y, j] < 0.6 * values.max()
            text = f"{values[y, j]:.1f}"
            axis.text(
                j, y, text, ha="center", va="center", fontsize=7.5, color="w" if dark else "k"
            )
        names = range(len(images.class_names))
        axis.set_xticks(names, images.class_names, rotation=90)
        axis.set_yticks(names, images.class_names)
        axis.set_title(title)
        axis.set(xlabel="score j", ylabel="class y of the pixel")
        axis.tick_params(length=0)
    maps = below.subplots(1, 4)
    plain, bound = (np.asarray(pixel_loss(scene, statistics, s))[0] for s in (0.0, STRENGTH))
    show_image(maps[0], scene.image, "image")
    show_image(maps[1], colored(scene.label, images), "label")
    show_map(maps[2], plain, "plain KL", 0, None)
    show_map(maps[3], bound - plain, f"added by “soft”, {STRENGTH:g}", 0, None)
    return figure


def fakd_bounds(scene: Scene, images: Images, statistics: losses.ClassStatistics) -> Figure:
    """How the bounds grow with the strength at three pixels, beside the true expectation."""
    strengths = np.linspace(0, STRENGTH, 16)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (kind, place) in zip(axes, telling_pixels(scene, statistics).items(), strict=True):
        draws = np.stack([augmented(scene, statistics, place, s) for s in strengths])
        mean, error = draws.mean(1), 2 * draws.std(1) / np.sqrt(draws.shape[1])
        axis.fill_between(strengths, mean - error, mean + error, color="0.75", lw=0)
        axis.plot(strengths, mean, color="k", lw=2, label="expectation (Monte Carlo)")
        for color, bound in zip(
            COLORS, ("student", "soft", "none", "label", "pairwise"), strict=False
        ):
            values = [pixel_loss(scene, statistics, s, bound)[(0, *place)] for s in strengths]
            width = 3.5 if bound == "student" else 1.5
            axis.plot(strengths, values, color=color, lw=width, label=f"bound “{bound}”")
        values = [plugin(scene, statistics, s)[(0, *place)] for s in strengths]
        axis.plot(strengths, values, color="k", ls=":", label="“plugin”: no bound")
        axis.axhline(draws[0, 0], color="0.5", lw=1, ls="--", label="plain loss")
        axis.set_title(f"{kind}\n(label: {images.class_names[scene.small[place]]})")
        axis.set(xlabel="strength", xlim=(0, STRENGTH), ylim=(0, None))
    axes[0].set_ylabel("divergence, nats")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


@functools.partial(jax.jit, static_argnames="bound")
def head_loss(output, teacher, labels, covariance, strength, bound: Any = "soft"):
    """`fakd_kl` of an output's class scores."""
    head = output.classifiers["logits"]
    return losses.fakd_kl(
        head.inputs, head.kernel, head.bias, teacher, labels, covariance,
        strength=strength, bound=bound,
    )  # fmt: skip


def pixel_loss(scene: Scene, statistics: losses.ClassStatistics, strength: float, bound="soft"):
    """A bound at every pixel of the scene."""
    labels = jnp.asarray(scene.small[None])
    rest = (scene.teacher.logits, labels, statistics.covariance, strength)
    return head_loss(scene.student, *rest, bound=bound)


def plugin(scene: Scene, statistics: losses.ClassStatistics, strength: float) -> jax.Array:
    """What is no bound: the divergence of ISDA's augmented scores."""
    head = scene.student.classifiers["logits"]
    labels = jnp.asarray(scene.small[None])
    scores = losses.isda_logits(
        head.inputs, head.kernel, head.bias, labels, statistics.covariance, strength=strength
    )
    return losses.pixelwise_kl(scores, scene.teacher.logits)


def augmented(scene, statistics, pixel, strength, draws=4000) -> np.ndarray:
    """The divergence of one pixel under drawn noise; the same draws for every strength."""
    head = scene.student.classifiers["logits"]
    scale = np.sqrt(strength * statistics.covariance[scene.small[pixel]])
    noise = np.random.default_rng(0).standard_normal((draws, len(scale)))
    features = head.inputs[(0, *pixel)] + jnp.asarray(noise * scale, jnp.float32)
    scores = (features @ head.kernel + head.bias)[:, None, None]
    teacher = jnp.broadcast_to(scene.teacher.logits[(0, *pixel)], scores.shape)
    return np.asarray(losses.pixelwise_kl(scores, teacher)).ravel()


def main_class(scene: Scene) -> int:
    """The class that covers most of the scene, without the background."""
    return int(np.bincount(scene.small.ravel())[1:].argmax()) + 1


def marked_pixels(scene: Scene) -> list[tuple[int, int]]:
    """One pixel of the largest object, one of the second largest and one of the background."""
    sizes = np.bincount(scene.small.ravel(), minlength=3)
    largest = np.argsort(-sizes[1:])[:2] + 1
    return [middle(scene.small == kind) for kind in (*largest, 0)]


def middle(region: np.ndarray) -> tuple[int, int]:
    """A pixel of the region that is as far from its border as any."""
    inside = np.pad(region, 1)
    while True:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(inside, 1), (3, 3))
        smaller = around.all((-2, -1))
        if not smaller.any():
            row, column = np.argwhere(inside)[0] - 1
            return int(row), int(column)
        inside = smaller


def telling_pixels(scene: Scene, statistics: losses.ClassStatistics) -> dict[str, tuple[int, int]]:
    """Pixels of objects: both right, the student wrong, and the trap at its deepest."""
    student, teacher = (np.asarray(jax.nn.softmax(x))[0] for x in scene.logits)
    truth = np.eye(student.shape[-1], dtype=bool)[scene.small]
    q, p = (x[truth].reshape(scene.small.shape) for x in (student, teacher))
    below = pixel_loss(scene, statistics, 0.0)[0] - plugin(scene, statistics, STRENGTH / 5)[0]
    chosen = {
        "both networks are right": p * q,
        "the student errs": p - q,
        "the teacher doubts the label": np.asarray(below),
    }
    return {
        kind: pixel(np.where(scene.small > 0, score, -np.inf)) for kind, score in chosen.items()
    }


def pixel(score: np.ndarray) -> tuple[int, int]:
    """Where a score is highest."""
    row, column = np.unravel_index(score.argmax(), score.shape)
    return int(row), int(column)


def share(scores: jax.Array) -> jax.Array:
    """Softmax over all entries."""
    return jax.nn.softmax(scores, axis=(0, 1))


def colored(label: np.ndarray, images: Images) -> np.ndarray:
    """A label map in the colours of its classes."""
    return colorize(np.asarray(label, np.uint8), np.asarray(images.palette))


def grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure of square panels."""
    figure = Figure(figsize=(8, 2.7 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns)


def mark(axis: Axes, place: tuple[float, ...], name: str) -> None:
    """Writes a pixel's name where it lies."""
    row, column = place
    box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black", "lw": 1}
    axis.text(column, row, name, ha="center", va="center", fontsize=8, color="black", bbox=box)


def show_image(axis: Axes, image: np.ndarray, title: str) -> None:
    """Shows colours as they are."""
    bar = _show(axis, image, title)
    # It keeps its room, so that images stand in line with maps.
    bar.solids.set_visible(False)
    bar.ax.tick_params(colors="none")


def show_map(axis: Axes, values: np.ndarray, title: str, low: float, high: float | None) -> None:
    """Shows magnitudes, with their scale below."""
    _show(axis, values, title, cmap=MAGNITUDE, vmin=low, vmax=high)


def show_signed(axis: Axes, values: np.ndarray, title: str, limit: float | None = None) -> None:
    """Shows signed values around white, with their scale below."""
    limit = limit or float(np.abs(values).max())
    _show(axis, values, title, cmap=SIGNED, vmin=-limit, vmax=limit)


def _show(axis: Axes, values: np.ndarray, title: str, **scale: Any) -> Any:
    image = axis.imshow(values, interpolation="nearest", **scale)
    axis.set_title(title)
    axis.set_axis_off()
    bar = axis.figure.colorbar(
        image, ax=axis, location="bottom", fraction=0.06, pad=0.03, aspect=18
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, length=2)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    return bar


if __name__ == "__main__":
    main()
