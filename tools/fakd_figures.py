"""Draws what FAKD's noise does to the scores of a scene, and how its bounds grow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from kdjax import losses
from kdjax.data.run_data import RunData
from kdjax.reporting.figures import COLORS
from tools.figure_parts import MAGNITUDE, colored, show_image, show_map
from tools.scenes import Scene, pixel

STRENGTH = 7.5  # ISDA's for segmentation


def fakd(scene: Scene, images: RunData, statistics: losses.ClassStatistics) -> Figure:
    """Draws how far the noise of each class moves each score, and what the bound adds."""
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


def fakd_bounds(scene: Scene, images: RunData, statistics: losses.ClassStatistics) -> Figure:
    """Draws the bounds by strength at three pixels, with the true expectation."""
    strengths = np.linspace(0, STRENGTH, 16)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (kind, place) in zip(axes, example_pixels(scene, statistics).items(), strict=True):
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
    """Returns `fakd_kl` of the class scores of an output."""
    head = output.classifiers["logits"]
    return losses.fakd_kl(
        head.inputs, head.kernel, head.bias, teacher, labels, covariance,
        strength=strength, bound=bound,
    )  # fmt: skip


def pixel_loss(scene: Scene, statistics: losses.ClassStatistics, strength: float, bound="soft"):
    """Returns a bound at every pixel of the scene."""
    labels = jnp.asarray(scene.small[None])
    rest = (scene.teacher.logits, labels, statistics.covariance, strength)
    return head_loss(scene.student, *rest, bound=bound)


def plugin(scene: Scene, statistics: losses.ClassStatistics, strength: float) -> jax.Array:
    """Returns the divergence of ISDA's augmented scores, which is no bound."""
    head = scene.student.classifiers["logits"]
    labels = jnp.asarray(scene.small[None])
    scores = losses.isda_logits(
        head.inputs, head.kernel, head.bias, labels, statistics.covariance, strength=strength
    )
    return losses.pixelwise_kl(scores, scene.teacher.logits)


def augmented(scene, statistics, pixel, strength, draws=4000) -> np.ndarray:
    """Returns the divergence of one pixel under random noise, the same for every strength."""
    head = scene.student.classifiers["logits"]
    scale = np.sqrt(strength * statistics.covariance[scene.small[pixel]])
    noise = np.random.default_rng(0).standard_normal((draws, len(scale)))
    features = head.inputs[(0, *pixel)] + jnp.asarray(noise * scale, jnp.float32)
    scores = (features @ head.kernel + head.bias)[:, None, None]
    teacher = jnp.broadcast_to(scene.teacher.logits[(0, *pixel)], scores.shape)
    return np.asarray(losses.pixelwise_kl(scores, teacher)).ravel()


def example_pixels(scene: Scene, statistics: losses.ClassStatistics) -> dict[str, tuple[int, int]]:
    """Finds pixels of objects: both networks right, the student wrong, the teacher in doubt."""
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
