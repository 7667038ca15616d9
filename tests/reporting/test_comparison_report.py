"""What a report shows of a comparison: intervals, gains per class, curves, disagreements."""

import re

import numpy as np
import pytest
import thorough
from made_up_results import PALETTE, report, run

from kdjax.reporting import figures, intervals, panels
from kdjax.reporting.intervals import Estimate, heat_map, interval_dots
from kdjax.reporting.report import write_report
from kdjax.reporting.results import Example

NAN = float("nan")


def students(distilled, plain=((0.5, 0.2, 0.3), (0.4, 0.4, 0.5)), method="cwd"):
    """Two seeds of a plain and of a distilled student, with their IoU of each class."""
    return [
        *(run("plain", "plain", seed, 0.4, class_iou=iou) for seed, iou in enumerate(plain)),
        *(run(method, "distilled", seed, 0.5, class_iou=iou) for seed, iou in enumerate(distilled)),
    ]


def page_of(tmp_path, *args, **kwargs):
    write_report(tmp_path / "report.html", report(*args, **kwargs))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class TestIntervals:
    def test_gains_of_a_class_leave_out_the_seeds_that_lack_it(self):
        runs = students([(0.6, 0.3, NAN), (0.7, 0.4, NAN), (0.9, 0.9, 0.9)])
        plain, distilled = report(runs).methods()
        first, second, third = intervals.class_gains(distilled, plain)
        # Differences of 0.1 and 0.3, then 0.1 and 0; t's quantile with one degree is 12.7062.
        assert first == pytest.approx((0.2, 0.2 - 1.27062, 0.2 + 1.27062), abs=1e-4)
        assert second == pytest.approx((0.05, 0.05 - 0.63531, 0.05 + 0.63531), abs=1e-4)
        assert np.isnan(third.value)

    def test_a_class_that_one_seed_has_is_given_without_an_interval(self):
        runs = students([(0.6, 0.3, NAN), (0.7, 0.4, 0.75)])
        plain, distilled = report(runs).methods()
        assert intervals.class_gains(distilled, plain)[2] == (pytest.approx(0.25), None, None)

    def test_far_out(self):
        values = np.array([1.0, 2, 3, 4, 5, 11, 12, NAN, -6])
        # Quartiles of the eight known: 1.75 and 6.5, so that the fences are -12.5 and 20.75.
        assert list(intervals.without_far_out(values)) == [1, 2, 3, 4, 5, 11, 12, -6]
        assert list(intervals.without_far_out(np.append(values, -80))) == [
            1,
            2,
            3,
            4,
            5,
            11,
            12,
            -6,
        ]
        assert len(intervals.without_far_out(np.array([NAN]))) == 0


class TestIntervalFigure:
    def test_dots_bars_and_marks_in_percent(self):
        estimates = {"a": Estimate(0.5, 0.48, 0.52), "b": Estimate(0.53), "c": Estimate(NAN)}
        seeds = {"a": [0.49, 0.51], "b": [0.53], "c": [NAN]}
        colors = figures.method_colors(estimates)
        (axes,) = interval_dots(estimates, seeds, "mIoU", colors, line_at=0.49).axes
        line, bar, marks, dot, *_ = axes.lines
        assert list(line.get_xdata()) == pytest.approx([49, 49])
        assert list(bar.get_xdata()) == pytest.approx([48, 52], abs=1)
        assert list(marks.get_xdata()) == pytest.approx([49, 51])
        assert list(dot.get_xdata()) == pytest.approx([50])
        assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
        assert not axes.texts

    def test_a_diverged_run_is_an_arrow_and_does_not_set_the_axis(self):
        estimates = {f"m{i}": Estimate(0.5 + i / 100) for i in range(5)}
        estimates["lost"] = Estimate(0.06, -0.5, 0.9)
        seeds = {name: [estimate.value] for name, estimate in estimates.items()}
        colors = figures.method_colors(estimates)
        (axes,) = interval_dots(estimates, seeds, "mIoU", colors, line_at=0.5).axes
        low, high = axes.get_xlim()
        assert 48 < low < 50
        assert 54 < high < 56
        assert [text.get_text() for text in axes.texts] == ["6.0"]
        (bar,) = [line for line in axes.lines if line.get_linewidth() == 5]
        assert list(bar.get_xdata()) == [low, high]

    @pytest.mark.parametrize("mious", [(NAN, NAN), (0.5, NAN), (0.4, 0.4)])
    def test_runs_without_a_result_are_drawn(self, tmp_path, mious):
        runs = [run("plain", "plain", 0, mious[0]), run("cwd", "distilled", 0, mious[1])]
        html = page_of(tmp_path, runs)
        assert ("Gain over the plain student" in html) == np.isfinite(mious[0])


class TestHeatMap:
    def test_colours_say_how_much_and_bold_how_sure(self):
        runs = students([(0.60, 0.2, 0.2), (0.502, 0.4, 0.4)])
        runs.append(run("teacher", "teacher", 0, 0.6, class_iou=[0.65, 0.2, 0.4]))
        found = heat_map(report(runs))
        assert found.header == ["Class", "plain, IoU %", "teacher", "cwd"]
        assert [[cell.text for cell in row] for row in found.rows] == [
            ["45.0", "+20.0", "+10.1"],
            ["30.0", "-10.0", "+0.0"],
            ["40.0", "+0.0", "-10.0"],
        ]
        assert found.full == pytest.approx(10.1)
        (_, teacher, first), (*_, second), (*_, third) = found.rows
        assert not teacher.background
        assert first.background == "rgb(42 127 196 / 70%)"  # the blue of a gain
        assert first.sure
        assert first.interval == "[+8.8, +11.4]"
        assert second.background.endswith(" 0%)")
        assert not second.sure
        assert third.background == "rgb(213 94 0 / 69%)"  # the vermilion of a loss
        assert found.has_intervals

    def test_an_absent_class_has_no_number(self):
        found = heat_map(report(students([(0.6, 0.3, NAN)] * 2, [(0.5, 0.2, NAN)] * 2)))
        assert [(cell.text, cell.key) for cell in found.rows[2]] == [("–", "")] * 2

    def test_nothing_gained_anywhere(self):
        same = [(0.5, 0.2, 0.3)] * 2
        found = heat_map(report(students(same, same)))
        assert {cell.background for row in found.rows for cell in row} == {""}

    def test_without_a_comparison_there_are_bars(self, tmp_path):
        assert heat_map(report([run("cwd", "distilled", 0, 0.5)])) is None
        assert heat_map(report([run("plain", "plain", 0, 0.5)])) is None
        assert "IoU per class" in page_of(tmp_path, [run("cwd", "distilled", 0, 0.5)])
        assert "Gain per class" in page_of(tmp_path, students([(0.6, 0.3, 0.1)]))


class TestLearningCurves:
    @pytest.mark.parametrize(("number", "charts"), thorough.after(1, [(5, 5), (4, 1)]))
    def test_many_methods_have_a_chart_each(self, tmp_path, number, charts):
        runs = [run("plain", "plain", 0, 0.4)]
        runs += [run(f"m{index}", "distilled", 0, 0.5) for index in range(number)]
        html = page_of(tmp_path, runs)
        training = html[html.index("<h2>Training") : html.index("<h2>Gain per class")]
        titles = re.findall(r'aria-label="(mIoU[^"]*)"', training)
        assert len(titles) == charts
        if charts > 1:
            assert titles[1] == "mIoU on val (%): m1"
        assert ('aria-label="loss"' in training) == (charts == 1)
        assert 'aria-label="loss"' in html


class TestPanels:
    def test_who_is_right_where_they_disagree(self):
        label = np.array([[0, 0, 0, 0, 255]], np.uint8)
        plain = np.array([[0, 1, 0, 1, 1]], np.uint8)
        distilled = np.array([[0, 0, 1, 2, 2]], np.uint8)
        expected = [[0, panels.ONLY_DISTILLED, panels.ONLY_PLAIN, panels.NEITHER, 0]]
        np.testing.assert_array_equal(panels.disagreement(distilled, plain, label, 3), expected)

    def test_the_best_method_is_shown_and_the_others_are_folded_away(self):
        label = np.zeros((2, 2), np.uint8)
        names = ("teacher", "plain", "nfd", "cwd")
        example = Example(
            image=np.zeros((2, 2, 3), np.uint8),
            label=label,
            predictions=dict.fromkeys(names, label),
        )
        found = panels.panels(example, PALETTE, plain="plain", distilled=["nfd", "cwd"], best="cwd")
        assert list(found.shown) == ["image", "label", "teacher", "plain", "cwd", "cwd ≠ plain"]
        assert list(found.folded) == ["nfd", "nfd ≠ plain"]
        alone = panels.panels(example, PALETTE, plain=None, distilled=[], best=None)
        assert list(alone.shown) == ["image", "label", *names]
        assert not alone.folded
        assert not alone.compared

    def test_the_page_says_what_the_colours_mean(self, tmp_path):
        label = np.zeros((2, 2), np.uint8)
        example = Example(
            image=np.zeros((2, 2, 3), np.uint8),
            label=label,
            predictions={"plain": label, "cwd": label + 1},
        )
        html = page_of(tmp_path, students([(0.6, 0.3, 0.1)]), examples=[example])
        assert "cwd ≠ plain" in html
        assert "only the distilled student is right" in html
        html = page_of(tmp_path, [run("plain", "plain", 0, 0.4)], examples=[example])
        assert "only the distilled student is right" not in html
