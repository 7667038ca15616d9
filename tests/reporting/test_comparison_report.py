"""The report of a comparison: intervals, gains per class, curves, pictures."""

import re

import numpy as np
import pytest
import thorough
from made_up_results import report, run

from kdjax.reporting import figures, intervals
from kdjax.reporting.figures import interval_dots
from kdjax.reporting.intervals import Estimate
from kdjax.reporting.report import write_report
from kdjax.reporting.results import Example
from kdjax.reporting.tables import class_table

NAN = float("nan")


def students(distilled, plain=((0.5, 0.2, 0.3), (0.4, 0.4, 0.5)), method="cwd"):
    """Returns two seeds of a plain and of a distilled student, with their IoU by class."""
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

    def test_outliers(self):
        values = np.array([1.0, 2, 3, 4, 5, 11, 12, NAN, -6])
        # Quartiles of the eight known: 1.75 and 6.5, so that the fences are -12.5 and 20.75.
        assert list(intervals.without_outliers(values)) == [1, 2, 3, 4, 5, 11, 12, -6]
        assert list(intervals.without_outliers(np.append(values, -80))) == [
            1,
            2,
            3,
            4,
            5,
            11,
            12,
            -6,
        ]
        assert len(intervals.without_outliers(np.array([NAN]))) == 0


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


class TestClassTable:
    def test_colors_show_the_gain_and_bold_text_an_interval_without_zero(self):
        runs = students([(0.60, 0.2, 0.2), (0.502, 0.4, 0.4)])
        runs.append(run("teacher", "teacher", 0, 0.6, class_iou=[0.65, 0.2, 0.4]))
        found, full = class_table(report(runs))
        assert found.header == ["Class", "plain, IoU %", "teacher", "cwd"]
        assert [row[1:] for row in found.texts()] == [
            ["45.0", "+20.0", "+10.1"],
            ["30.0", "-10.0", "+0.0"],
            ["40.0", "+0.0", "-10.0"],
        ]
        assert full == pytest.approx(10.1)
        (_, _, teacher, first), (*_, second), (*_, third) = found.rows
        assert not teacher.background
        assert first.background == "rgb(42 127 196 / 70%)"  # the blue of a gain
        assert first.bold
        assert first.interval == "[+8.8, +11.4]"
        assert second.background.endswith(" 0%)")
        assert not second.bold
        assert third.background == "rgb(213 94 0 / 69%)"  # the vermilion of a loss

    def test_an_absent_class_has_no_number(self):
        found, _ = class_table(report(students([(0.6, 0.3, NAN)] * 2, [(0.5, 0.2, NAN)] * 2)))
        assert [(cell.text, cell.key) for cell in found.rows[2][1:]] == [("–", "")] * 2

    def test_no_gain_in_any_class(self):
        same = [(0.5, 0.2, 0.3)] * 2
        found, _ = class_table(report(students(same, same)))
        assert {cell.background for row in found.rows for cell in row} == {""}

    @pytest.mark.parametrize("role", ["distilled", "plain"])
    def test_without_a_comparison_the_columns_are_iou(self, tmp_path, role):
        runs = [run("student", role, 0, 0.5, class_iou=(0.5, 0.25, NAN))]
        found, full = class_table(report(runs))
        assert full is None
        assert found.header == ["Class", "student, IoU %"]
        assert [row[1] for row in found.texts()] == ["50.00", "25.00", "–"]
        assert "IoU per class" in page_of(tmp_path, runs)
        assert "Gain per class" in page_of(tmp_path, students([(0.6, 0.3, 0.1)]))


@pytest.mark.parametrize("number", thorough.after(1, [6, 3]))
def test_curves_are_those_of_the_best_methods(tmp_path, number):
    runs = [run("plain", "plain", 0, 0.4), run("diverged", "distilled", 0, NAN)]
    runs += [run(f"m{index}", "distilled", 0, 0.5 + index / 100) for index in range(number)]
    html = page_of(tmp_path, runs)
    training = html[html.index("<h2>Training") : html.index("<h2>Gain per class")]
    assert re.findall(r'aria-label="([^"]*)"', training) == ["mIoU on val (%)", "loss"]
    chart, _, _ = training.partition("</figure>")
    names = [method for method in dict.fromkeys(r.method for r in runs) if f">{method}<" in chart]
    best = [f"m{index}" for index in range(number)][-4:]
    assert names == (["plain", *best] if number > 3 else ["plain", "diverged", *best])
    assert ("the 4 methods with the highest mIoU" in html) == (number > 3)


def test_the_pictures_of_all_methods_but_the_best_are_folded(tmp_path):
    label = np.zeros((2, 2), np.uint8)
    names = ("teacher", "plain", "nfd", "cwd")
    image = np.zeros((2, 2, 3), np.uint8)
    example = Example(image=image, label=label, predictions=dict.fromkeys(names, label))
    runs = [run("plain", "plain", 0, 0.4), run("nfd", "distilled", 0, 0.5)]
    html = page_of(tmp_path, [*runs, run("cwd", "distilled", 0, 0.6)], examples=[example])
    shown, _, folded = html.partition("The other methods")
    captions = r"<figcaption>(.*?)</figcaption>"
    assert re.findall(captions, shown) == ["image", "label", "teacher", "plain", "cwd"]
    assert re.findall(captions, folded) == ["nfd"]
    html = page_of(tmp_path, runs[:1], examples=[example])
    assert re.findall(captions, html) == ["image", "label", *names]
