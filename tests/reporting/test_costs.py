"""Costs of training, and the sentence on who is ahead at equal cost."""

import numpy as np
import pytest

from kdjax.reporting import costs
from kdjax.reporting.results import RunSummary, by_method


def runs(method, role, mious, *, cost, steps=100, platform="cpu"):
    return [
        RunSummary(
            method=method,
            role=role,
            seed=seed,
            steps=steps,
            learning_rate=0.1,
            miou=miou,
            pixel_accuracy=0.5,
            class_iou=[miou],
            parameters=1,
            seconds=1.0,
            images_per_second=1.0,
            step_seconds=10 * cost,
            step_processor_seconds=cost,
            platform=platform,
            history=[{"step": step, "val/miou": miou * step / steps} for step in (50, steps)],
        )
        for seed, miou in enumerate(mious)
    ]


PLAIN = runs("plain student", "plain", (0.40, 0.42, 0.41), cost=0.2)
LONGER = runs("plain student, 2.0x time", "plain", (0.45, 0.47, 0.46), cost=0.2, steps=200)
CHEAP = runs("cached", "distilled", (0.46, 0.48, 0.46), cost=0.21)
DEAR = runs("live", "distilled", (0.46, 0.46, 0.46), cost=0.4)


def verdict(*groups):
    return costs.verdict(by_method(run for group in groups for run in group), "test")


def test_a_method_is_compared_with_the_plain_student_of_its_own_cost():
    methods = by_method([*PLAIN, *LONGER, *CHEAP, *DEAR])
    unit = costs.unit_of(methods)
    assert unit == "step_processor_seconds"
    found = {
        result.method: costs.equal_cost_student(result, methods, unit)
        for result in methods
        if result.role == "distilled"
    }
    assert {name: student and student.method for name, student in found.items()} == {
        "cached": "plain student",
        "live": "plain student, 2.0x time",
    }


def test_the_sentence_names_the_method_that_is_ahead():
    assert verdict(PLAIN, LONGER, CHEAP, DEAR) == (
        "At the cost of cached (21 processor seconds, 1.05 times a plain step), cached is ahead: "
        "+5.7 [+4.2, +7.1] points of mIoU on test over the plain student."
    )


def test_the_sentence_claims_nothing_that_the_seeds_do_not_allow():
    said = verdict(PLAIN, LONGER, DEAR)
    assert "no method is ahead with an interval above zero" in said
    assert said.endswith(
        "+0.0 [-2.5, +2.5] points of mIoU on test over the plain student, 2.0x time."
    )
    assert "One seed each" in verdict(PLAIN[:1], CHEAP[:1])


def test_a_larger_gain_that_may_be_chance_hides_no_certain_one():
    chance = runs("chance", "distilled", (0.46, 0.62, 0.42), cost=0.2)
    assert "cached is ahead: +5.7 [+4.2, +7.1]" in verdict(PLAIN, CHEAP, chance)


@pytest.mark.parametrize("groups", [(PLAIN,), (CHEAP,), (PLAIN, DEAR)])
def test_without_a_plain_student_of_equal_cost_nothing_is_said(groups):
    assert verdict(*groups) == ""


def test_beside_an_accelerator_time_is_wall_time():
    gpu = runs("plain student", "plain", (0.4,), cost=0.2, platform="gpu")
    assert costs.unit_of(by_method(gpu)) == "step_seconds"


def test_curves_are_drawn_against_the_cost_with_their_intervals():
    methods = by_method([*PLAIN, *LONGER])
    curves = costs.cost_curves(methods, "val/miou", "step_processor_seconds")
    np.testing.assert_allclose(curves["plain student"].cost, [10, 20])
    np.testing.assert_allclose(curves["plain student, 2.0x time"].cost, [10, 40])
    np.testing.assert_allclose(curves["plain student"].mean, [0.205, 0.41])
    low, high = curves["plain student"].low, curves["plain student"].high
    assert low is not None
    assert high is not None
    np.testing.assert_allclose((low + high) / 2, [0.205, 0.41])
    # 4.303 / sqrt(3) deviations of 0.01.
    np.testing.assert_allclose(high - low, [0.0248, 0.0497], rtol=0.01)
