"""Gains of methods over the plain student, with confidence intervals over the seeds.

A method and the plain student with the same seed share initial weights and batches. Their
difference therefore varies less than either score, and the intervals are those of its mean.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from kdjax.reporting.results import MethodResult

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value, NaN if unknown, and the ends of its interval, None if it has none."""

    value: float
    low: float | None = None
    high: float | None = None


UNKNOWN = Estimate(math.nan)


def mean_interval(values: np.ndarray) -> tuple[Any, Any]:
    """Returns the ends of the confidence interval of a mean, by Student's t.

    Args:
      values: `[..., n]`, at least two in the last axis, normally distributed.
    """
    mean = np.mean(values, axis=-1)
    n = values.shape[-1]
    reach = _quantile(n) * np.std(values, axis=-1, ddof=1) / np.sqrt(n)
    return mean - reach, mean + reach


def ratio_interval(above: np.ndarray, below: np.ndarray) -> tuple[Any, Any]:
    """Returns the ends of Fieller's confidence interval of the ratio of two means.

    The interval contains every ratio r for which the interval of the mean of `above - r * below`
    covers zero. (Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16, 1954.)

    Args:
      above: `[..., n]`, at least two in the last axis.
      below: `[..., n]`, paired with `above`.

    Returns:
      NaN twice if the interval of the mean of `below` covers zero: the ratio has no bounds then.
    """
    n = above.shape[-1]
    factor = _quantile(n) ** 2 / n
    top, bottom = np.mean(above, axis=-1), np.mean(below, axis=-1)
    mixed = (above - top[..., None]) * (below - bottom[..., None])
    # The ends solve a r^2 - 2 b r + c = 0.
    a = bottom**2 - factor * np.var(below, axis=-1, ddof=1)
    b = top * bottom - factor * np.sum(mixed, axis=-1) / (n - 1)
    c = top**2 - factor * np.var(above, axis=-1, ddof=1)
    a = np.where(a > 0, a, np.nan)
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    return (b - root) / a, (b + root) / a


def without_outliers(values: np.ndarray) -> np.ndarray:
    """Returns the known values `[n]` within Tukey's outer fences.

    One diverged run must not set the scale of a chart. (Tukey, "Exploratory Data Analysis", 1977.)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return known
    first, third = np.percentile(known, [25, 75])
    fence = 3 * (third - first)
    return known[(first - fence <= known) & (known <= third + fence)]


def gain(result: MethodResult, over: MethodResult | None) -> Estimate:
    """Returns the gain in mIoU over another method: the mean over the seeds that both have.

    A single seed has no interval. Neither has a teacher, which shares no seed with a student.
    """
    if over is None or result.method == over.method:
        return UNKNOWN
    values, baseline = _paired(result, over)
    if result.role == "teacher" or not len(values):
        return Estimate(result.miou - over.miou)
    return _mean(values - baseline)


def paired_gains(result: MethodResult, plain: MethodResult) -> list[float]:
    """Returns the gain in mIoU of each seed that both methods have."""
    values, baseline = _paired(result, plain)
    return (values - baseline).tolist()


def class_gains(result: MethodResult, plain: MethodResult) -> list[Estimate]:
    """Returns the gain in IoU of each class, over the seeds in which both methods have it."""
    if result.role == "teacher":
        return [Estimate(float(value)) for value in result.class_iou - plain.class_iou]
    values, baseline = _paired(result, plain, "class_iou")
    if not len(values):
        return [UNKNOWN] * len(plain.class_iou)
    return [_mean(column[np.isfinite(column)]) for column in (values - baseline).T]


def seeds_mean(result: MethodResult) -> Estimate:
    """Returns the mean mIoU of a method over its seeds."""
    return _mean(np.array([run.miou for run in result.runs]))


def gap_closed(
    result: MethodResult, plain: MethodResult | None, teacher: MethodResult | None
) -> Estimate:
    """Returns the fraction of the gap in mIoU between plain student and teacher that is closed.

    The value is unknown if the teacher is not above the plain student. The interval does not
    include how the teacher would vary with its own seed.
    """
    if plain is None or teacher is None or result.role != "distilled":
        return UNKNOWN
    values, baseline = _paired(result, plain)
    gaps = teacher.miou - baseline
    if not len(values) or not np.mean(gaps) > 0:
        return UNKNOWN
    closed = float(np.mean(values - baseline) / np.mean(gaps))
    return _estimate(closed, ratio_interval, values - baseline, gaps)


def _paired(
    result: MethodResult, plain: MethodResult, field: str = "miou"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a metric of each method at the seeds that both have: `[n]`, or `[n, K]` by class."""
    values, baseline = (
        {run.seed: getattr(run, field) for run in method.runs} for method in (result, plain)
    )
    seeds = [seed for seed in values if seed in baseline]
    return np.array([values[seed] for seed in seeds]), np.array([baseline[seed] for seed in seeds])


def _mean(values: np.ndarray) -> Estimate:
    return _estimate(float(np.mean(values)), mean_interval, values) if len(values) else UNKNOWN


def _estimate(
    value: float, interval: Callable[..., tuple[Any, Any]], *samples: np.ndarray
) -> Estimate:
    if len(samples[0]) < 2:
        return Estimate(value)
    low, high = map(float, interval(*samples))
    return Estimate(value) if math.isnan(low) else Estimate(value, low, high)


def _quantile(n: int) -> float:
    # The same as `scipy.stats.t.ppf`, whose module takes half a second to import.
    return float(special.stdtrit(n - 1, (1 + LEVEL) / 2))
