"""Confidence intervals of simulated results with known means."""

import numpy as np
import pytest

from kdjax.reporting import intervals
from kdjax.reporting.results import MethodResult, RunSummary

DRAWS, SEEDS = 2000, 5
# Three standard deviations of the share of 2,000 draws whose interval covers, 95 % of them.
SLACK = 3 * (0.95 * 0.05 / DRAWS) ** 0.5


def draws(effect, gap=0.2):
    """Returns simulated gains and gaps, which share the noise of their plain student."""
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 0.01, (DRAWS, SEEDS))
    gains = effect + rng.normal(0, 0.01, (DRAWS, SEEDS)) - luck
    return gains, gap - luck


@pytest.mark.parametrize("effect", [0.0, 0.03])
def test_the_interval_of_a_gain_covers_the_truth_at_its_rate(effect):
    low, high = intervals.mean_interval(draws(effect)[0])
    assert np.mean((low <= effect) & (effect <= high)) == pytest.approx(0.95, abs=SLACK)
    assert low.shape == (DRAWS,)


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_the_interval_of_the_share_of_the_gap_covers_the_truth_at_its_rate(effect):
    low, high = intervals.ratio_interval(*draws(effect))
    share = effect / 0.2
    assert np.mean((low <= share) & (share <= high)) == pytest.approx(0.95, abs=SLACK)


def test_the_ends_of_a_ratio_are_where_the_difference_just_covers_zero():
    above, below = (values[0] for values in draws(0.05))
    low, high = intervals.ratio_interval(above, below)
    assert intervals.mean_interval(above - low * below)[0] == pytest.approx(0, abs=1e-9)
    assert intervals.mean_interval(above - high * below)[1] == pytest.approx(0, abs=1e-9)


def test_a_ratio_to_what_may_be_zero_has_no_bounds():
    assert np.isnan(intervals.ratio_interval(np.array([1.0, 2.0]), np.array([-1.0, 1.5]))).all()


def test_an_interval_by_hand():
    # Mean 2, standard error 1 / sqrt(3), and t's 97.5 % quantile with two degrees of freedom.
    low, high = intervals.mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def method(role, *mious):
    runs = [
        RunSummary(
            method=role,
            role=role,
            seed=seed,
            miou=miou,
            **{"steps": 1, "learning_rate": 0.1, "pixel_accuracy": 0.5, "class_iou": []},
            **{"parameters": 1, "seconds": 1.0, "images_per_second": 1.0},
        )
        for seed, miou in enumerate(mious)
    ]
    return MethodResult(method=role, role=role, runs=runs)


def test_unknown_gains():
    plain, distilled = method("plain", 0.4, 0.42), method("distilled", 0.5, 0.5)
    worse, diverged = method("teacher", 0.3), method("distilled", 0.5, float("nan"))
    assert intervals.gain(distilled, None) == intervals.UNKNOWN
    assert intervals.gap_closed(distilled, plain, worse) == intervals.UNKNOWN
    assert np.isnan(intervals.gain(diverged, plain).value)
    assert intervals.gain(method("distilled", 0.5), plain)[1:] == (None, None)
    assert intervals.gain(worse, plain) == (pytest.approx(-0.11), None, None)
