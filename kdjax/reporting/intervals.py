"""What seeds say about a difference: confidence intervals by Student's t, pairs of seeds.

Student and method of one seed share their initial weights and batches, so that their difference
varies less than each of them; intervals are those of the mean of these differences.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from kdjax.reporting.results import MethodResult

LEVEL = 0.95
_FENCE = 3  # interquartile ranges beyond the quartiles, where Tukey calls a value far out


class Estimate(NamedTuple):
    """A value, NaN where it is not known, and the ends of its interval, None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None


NOTHING = Estimate(float("nan"))


def mean_interval(values: np.ndarray, level: float = LEVEL) -> tuple[Any, Any]:
    """Ends of the confidence interval of a mean, by Student's t.

    Args:
        values: `[..., n]`, at least two in the last axis, normally distributed.
        level: how often such an interval covers the true mean.
    """
    mean = np.mean(values, axis=-1)
    n = values.shape[-1]
    reach = _quantile(n, level) * np.std(values, axis=-1, ddof=1) / np.sqrt(n)
    return mean - reach, mean + reach


def ratio_interval(above: np.ndarray, below: np.ndarray, level: float = LEVEL) -> tuple[Any, Any]:
    """Ends of Fieller's confidence interval of a ratio of two means, of paired values.

    It holds every ratio r for which the interval of the mean of `above - r * below` covers zero.
    (Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16, 1954.)

    Args:
        above: `[..., n]`, at least two in the last axis.
        below: likewise.
        level: as for `mean_interval`.

    Returns:
        NaN twice where the mean of `below` cannot be told from zero: the ratio has no bounds then.
    """
    n = above.shape[-1]
    factor = _quantile(n, level) ** 2 / n
    top, bottom = np.mean(above, axis=-1), np.mean(below, axis=-1)
    mixed = (above - top[..., None]) * (below - bottom[..., None])
    # The ends solve a r^2 - 2 b r + c = 0.
    a = bottom**2 - factor * np.var(below, axis=-1, ddof=1)
    b = top * bottom - factor * np.sum(mixed, axis=-1) / (n - 1)
    c = top**2 - factor * np.var(above, axis=-1, ddof=1)
    a = np.where(a > 0, a, np.nan)
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    return (b - root) / a, (b + root) / a


def without_far_out(values: np.ndarray) -> np.ndarray:
    """Those of `values` `[n]` that are known and not far out: one diverged run must set no scale.

    (Tukey, "Exploratory Data Analysis", 1977: beyond the outer fences.)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return known
    first, third = np.percentile(known, [25, 75])
    fence = _FENCE * (third - first)
    return known[(first - fence <= known) & (known <= third + fence)]


def gain(result: MethodResult, over: MethodResult | None) -> Estimate:
    """Gain in mIoU over another one, as the plain student: the mean over the seeds that both have.

    Without an interval for a teacher (which shares no seed with a student) and for a single seed.
    """
    if over is None or result is over:
        return NOTHING
    ours, theirs = _paired(result, over)
    if result.role == "teacher" or not len(ours):
        return Estimate(result.miou - over.miou)
    return _mean(ours - theirs)


def class_gains(result: MethodResult, plain: MethodResult) -> list[Estimate]:
    """Gain of each class in IoU, as `gain`; of a class, over the seeds in which both have it."""
    if result.role == "teacher":
        return [Estimate(float(value)) for value in result.class_iou - plain.class_iou]
    ours, theirs = _paired(result, plain, "class_iou")
    if not len(ours):
        return [NOTHING] * len(plain.class_iou)
    return [_mean(column[np.isfinite(column)]) for column in (ours - theirs).T]


def seeds_mean(result: MethodResult) -> Estimate:
    """MIoU of a method, and the interval of its mean over the seeds."""
    return _mean(np.array([run.miou for run in result.runs]))


def gap_closed(
    result: MethodResult, plain: MethodResult | None, teacher: MethodResult | None
) -> Estimate:
    """Share of the way from the plain student's mIoU to the teacher's, by seed; see `gain`.

    The teacher is taken as it is: how it would come out with other seeds is left out of account.
    No number where the teacher is not above the plain student.
    """
    if plain is None or teacher is None or result.role != "taught":
        return NOTHING
    ours, theirs = _paired(result, plain)
    gaps = teacher.miou - theirs
    if not len(ours) or not np.mean(gaps) > 0:
        return NOTHING
    share = float(np.mean(ours - theirs) / np.mean(gaps))
    return _estimate(share, *_bounds(ratio_interval, ours - theirs, gaps))


def paired_gains(result: MethodResult, plain: MethodResult) -> list[float]:
    """Gain in mIoU of each seed that both have."""
    ours, theirs = _paired(result, plain)
    return (ours - theirs).tolist()


def _paired(
    result: MethodResult, plain: MethodResult, field: str = "miou"
) -> tuple[np.ndarray, np.ndarray]:
    """A metric of each at the seeds that both have, `[n]`, or `[n, K]` of one by class."""
    ours, theirs = (
        {run.seed: getattr(run, field) for run in method.runs} for method in (result, plain)
    )
    seeds = [seed for seed in ours if seed in theirs]
    return np.array([ours[seed] for seed in seeds]), np.array([theirs[seed] for seed in seeds])


def _mean(values: np.ndarray) -> Estimate:
    if not len(values):
        return NOTHING
    return _estimate(float(np.mean(values)), *_bounds(mean_interval, values))


def _bounds(interval: Any, *values: np.ndarray) -> tuple[float, float]:
    if len(values[0]) < 2:
        return float("nan"), float("nan")
    low, high = interval(*values)
    return float(low), float(high)


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value) if np.isnan(low) else Estimate(value, low, high)


def _quantile(n: int, level: float) -> float:
    # As `scipy.stats.t.ppf`, without the half second in which that module is imported.
    return float(special.stdtrit(n - 1, (1 + level) / 2))
