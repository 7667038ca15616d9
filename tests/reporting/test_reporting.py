"""Figures, tables, and the HTML report."""

import csv
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from made_up_results import PALETTE, report, run
from PIL import Image

from kdjax.reporting import figures, pictures
from kdjax.reporting.report import write_report, write_results
from kdjax.reporting.results import Example, Inspected, InspectedImage, read_runs, write_runs
from kdjax.reporting.tables import csv_table, markdown_table, method_table, note, text_table


@pytest.fixture(scope="module")
def comparison():
    return report(
        [
            run("cwd", "distilled", 0, 0.50),
            run("cwd", "distilled", 1, 0.52),
            run(
                "teacher",
                "teacher",
                0,
                0.6287,
                parameters=13_100_000,
                seconds=3723,
                step_flops=None,
                step_bytes=None,
            ),
            run("plain", "plain", 0, 0.40),
            run("plain", "plain", 1, 0.44),
        ]
    )


@pytest.fixture(scope="module")
def page(comparison, tmp_path_factory):
    """The HTML report of the comparison."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, comparison)
    assert list(path.parent.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


class TestFigures:
    def test_colorize(self):
        label = np.array([[0, 1], [2, 255]], np.uint8)
        colors = pictures.colorize(label, PALETTE)
        assert colors.dtype == np.uint8
        np.testing.assert_array_equal(colors, [[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [128] * 3]])

    def test_pictures_side_by_side(self):
        image = np.full((3, 5, 3), 9, np.uint8)
        label = np.ones((3, 5), np.uint8)
        joined = pictures.side_by_side(
            image, label, {"teacher": label, "student": label * 2}, PALETTE
        )
        assert joined.shape == (3, 4 * 5 + 3 * 4, 3)
        np.testing.assert_array_equal(joined[:, :5], image)
        assert (joined[:, 5:9] == 255).all()
        assert (joined[:, 9:14] == PALETTE[1]).all()
        assert (joined[:, -5:] == PALETTE[2]).all()

    def test_samples_name_the_classes_that_they_hold(self):
        image = np.full((30, 40, 3), 9, np.uint8)
        label = np.repeat([[0, 255, 2, 2]], 30, axis=0).repeat(10, axis=1).astype(np.uint8)
        names = ["road", "sky", "a tree"]
        figure = figures.samples([{"image": image, "label": label}] * 2, names, PALETTE)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["road", "a tree"]
        assert [axes.get_title() for axes in figure.axes] == ["image", "label", "", ""]
        shown = np.asarray(figure.axes[3].images[0].get_array())
        np.testing.assert_array_equal(shown[0, ::10], [PALETTE[0], [255] * 3, *[PALETTE[2]] * 2])

    @pytest.mark.parametrize("shape", [(3000, 1), (1, 3000), (4000, 3000)])
    def test_samples_of_any_size_make_a_picture_of_bounded_size(self, shape):
        example = {"image": np.zeros((*shape, 3), np.uint8), "label": np.ones(shape, np.uint8)}
        figure = figures.samples([example], ["road", "sky"], PALETTE)
        width, height = figure.get_size_inches()
        assert width == pytest.approx(figures.WIDTH)
        assert figures.WIDTH / 6 <= height <= 2 * figures.WIDTH
        for axes in figure.axes:
            shown = axes.images[0].get_array()
            assert max(shown.shape) <= 1024
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky"]
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        with Image.open(buffer) as drawn:
            pixels = np.asarray(drawn.convert("RGB"))
        assert (pixels == PALETTE[1]).all(-1).sum() > 10_000

    def test_an_absent_class_is_labeled(self):
        (axes,) = figures.class_iou_bars([0.0, np.nan], ["zero", "absent"], "IoU").axes
        assert [text.get_text() for text in axes.texts] == ["absent"]
        assert axes.texts[0].get_position()[1] == 1

    def test_curves_average_seeds_where_all_have_a_value(self):
        seeds = [([1, 2, 3], [1.0, 2.0, 3.0]), ([1, 2], [3.0, 4.0])]
        (axes,) = figures.curves({"a": seeds}, "loss").axes
        np.testing.assert_array_equal(axes.lines[-1].get_xydata(), [[1, 2], [2, 3]])
        assert len(axes.lines) == 3

    def test_long_curves_are_averaged_in_equal_stretches(self):
        (axes,) = figures.curves({"a": [(range(1000), [0.0, 2.0] * 500)]}, "loss").axes
        values = np.asarray(axes.lines[0].get_ydata())
        assert len(values) == 100
        np.testing.assert_array_equal(values, 1.0)

    @pytest.mark.parametrize(
        "series",
        [
            {"a": [([1], [np.nan])]},
            {"a": [([1], [1.0]), ([2], [1.0])]},  # seeds without a common step
            {"_hidden": [([1, 2], [1.0, 2.0])], "$x": [([1, 2], [1.0, 2.0])]},
        ],
    )
    def test_odd_curves_are_drawn(self, series):
        element = figures.svg(figures.curves(series, "loss"))
        assert element.startswith("<svg")
        assert element.endswith("</svg>")

    def test_a_legend_names_every_method(self):
        names = [f"method_{index}" for index in range(10)] + ["_hidden"]
        element = figures.svg(figures.curves({name: [([1], [1.0])] for name in names}, "loss"))
        assert all(f">{name}</text>" in element for name in names)

    def test_colors_stay_with_their_method(self):
        colors = figures.method_colors(["teacher", "plain", "cwd", "nfd"], "teacher", "plain")
        assert list(colors.values()) == [figures.TEACHER_COLOR, figures.INK, *figures.COLORS[:2]]


class TestTables:
    def test_markdown(self, comparison):
        assert markdown_table(comparison).splitlines() == [
            "| Method | mIoU % | vs plain | Gap closed % | Pixel acc. % | Agreement % | Seeds "
            "| Parameters | FLOP/step | Memory | Images/s | Time |",
            "| --- |" + " ---: |" * 11,
            "| teacher | 62.87 | +20.87 | – | 75.00 | – | 1 | 13.1 M | – | – | 123.4 | 1:02:03 |",
            "| plain | 42.00 ± 2.83 | – | – | 75.00 | 80.00 | 2 | 812 k | 2.5 G | 1.5 GiB | 123.4 "
            "| 0:01:05 |",
            # The differences are 10 and 8 points: 9 ± 12.706 * 1, as t's quantile is with one
            # degree of freedom. Two seeds do not tell the gap of 20.87 ± 25.4 from zero.
            "| cwd | 51.00 ± 1.41 | +9.00 [-3.71, +21.71] | 43 | 75.00 | 80.00 | 2 | 812 k "
            "| 2.5 G | 1.5 GiB | 123.4 | 0:01:05 |",
        ]

    def test_text_is_aligned(self, comparison):
        lines = text_table(comparison).splitlines()
        assert len({len(line) for line in lines}) == 1
        # Lines of a terminal are short.
        assert "Memory" not in lines[0]
        assert lines[2].startswith("teacher         62.87                 +20.87")
        assert lines[4].startswith("cwd      51.00 ± 1.41  +9.00 [-3.71, +21.71]            43")

    def test_columns_without_a_number_are_left_out(self):
        table = markdown_table(report([run("big|net", "teacher", 0, 0.6)]))
        assert "Agreement" not in table
        assert "vs plain" not in table
        assert "| big\\|net | 60.00 |" in table

    def test_a_diverged_run_has_no_number(self):
        runs = [run("plain", "plain", 0, 0.4), run("cwd", "distilled", 0, float("nan"))]
        assert "| cwd | – | 75.00 |" in markdown_table(report(runs))

    def test_csv_has_unrounded_numbers(self, comparison):
        teacher, _, cwd = csv.DictReader(io.StringIO(csv_table(comparison)))
        assert float(cwd["vs_plain"]) == pytest.approx(0.09)
        assert float(cwd["vs_plain_low"]) == pytest.approx(0.09 - 0.127062, abs=1e-6)
        assert float(cwd["gap_closed"]) == pytest.approx(0.09 / 0.2087)
        assert cwd["gap_closed_low"] == teacher["vs_plain_low"] == teacher["agreement"] == ""
        assert teacher["miou"] == "0.6287"
        assert teacher["seconds"] == "3723.0"

    def test_rows_are_sorted_by_numbers_and_not_by_their_text(self, comparison):
        table = method_table(comparison)
        parameters = table.header.index("Parameters")
        assert [row[parameters].key for row in table.rows] == [13_100_000, 812_345, 812_345]
        assert table.rows[1][table.header.index("vs plain")].key == ""

    def test_the_gain_of_every_run_is_counted_over_the_same_seed(self, comparison):
        table = method_table(comparison, by_seed=True)
        column = table.header.index("vs plain")
        assert [(row[0], row[column]) for row in table.texts()] == [
            ("teacher, seed 0", "+20.87"),
            ("plain, seed 0", "–"),
            ("plain, seed 1", "–"),
            ("cwd, seed 0", "+10.00"),
            ("cwd, seed 1", "+8.00"),
        ]

    def test_a_single_seed_has_no_interval_and_says_so(self):
        runs = [run("plain", "plain", 0, 0.4), run("cwd", "distilled", 0, 0.5)]
        assert "| cwd | 50.00 | +10.00 |" in markdown_table(report(runs))
        assert "One seed each" in note(report(runs))
        assert "Bracket" not in note(report(runs))

    def test_a_teacher_below_the_plain_student_is_remarked(self):
        students = [run("plain", "plain", 0, 0.4), run("cwd", "distilled", 0, 0.5)]
        remark = "The teacher's mIoU (39.00 %) is below that of the plain student (40.00 %): train"
        assert remark in note(report([run("teacher", "teacher", 0, 0.39), *students]))
        assert "below" not in note(report([run("teacher", "teacher", 0, 0.41), *students]))
        assert "below" not in note(report(students))

    def test_only_seeds_that_both_have_are_compared(self):
        runs = [run("plain", "plain", seed, miou) for seed, miou in enumerate((0.4, 0.44, 0.9))]
        runs += [run("cwd", "distilled", seed, miou) for seed, miou in enumerate((0.5, 0.52))]
        assert "+9.00 [-3.71, +21.71]" in markdown_table(report(runs))


class TestReport:
    def test_comparison(self, page):
        assert "cwd gains 9.00 points of mIoU over the plain student, with an interval that" in page
        assert "51.00 ± 1.41" in page
        assert "+20.87" in page
        assert "standard deviation" in page
        assert "“vs plain” is the gain in points of mIoU" in page

    def test_a_headline_of_one_seed_promises_no_gain(self, tmp_path):
        runs = [run("plain", "plain", 0, 0.4), run("cwd", "distilled", 0, 0.4513)]
        write_report(tmp_path / "report.html", report(runs))
        page = (tmp_path / "report.html").read_text()
        assert "cwd is 5.13 points of mIoU above the plain student with one seed, which may" in page
        (headline,) = re.findall('class="headline">(.*)<', page)
        assert "gains" not in headline

    def test_every_heading_sorts_and_every_cell_has_its_key(self, page):
        tables = re.findall(r"<thead>.*?</table>", page, re.S)
        assert len(tables) == 3
        for table in tables:
            rows = re.findall(r"<tr class.*?</tr>", table)
            assert {row.count("data-key=") for row in rows} == {table.count("<button>")}
        assert 'data-key="13100000.0">13.1 M' in page

    def test_how_settings_were_chosen_is_said(self, comparison, page, tmp_path):
        assert "How settings" not in page
        remarks = ["plain: val mIoU % lr<1 20.00; taken: lr<1", "cwd: diverged"]
        told = dataclasses.replace(comparison, remarks=remarks)
        write_report(tmp_path / "report.html", told)
        assert "<li>plain: val mIoU % lr&lt;1 20.00" in (tmp_path / "report.html").read_text()
        write_results(tmp_path, told)
        assert (tmp_path / "results.md").read_text().endswith("\n- cwd: diverged\n")

    def test_markdown_and_csv_stand_beside_it(self, comparison, tmp_path):
        write_results(tmp_path, comparison)
        text = (tmp_path / "results.md").read_text()
        assert markdown_table(comparison) in text
        assert "Student's t" in text
        assert (tmp_path / "results.csv").read_text() == csv_table(comparison)

    def test_one_run(self, tmp_path):
        write_report(tmp_path / "report.html", report([run("student", "plain", 0, 0.4321)]))
        html = (tmp_path / "report.html").read_text()
        assert "student: 43.21 % mIoU on val" in html
        assert "vs plain" not in html

    def test_a_loss_is_said_to_be_one(self, tmp_path):
        runs = [run("plain", "plain", 0, 0.4), run("cwd", "distilled", 0, 0.39)]
        write_report(tmp_path / "report.html", report(runs))
        html = (tmp_path / "report.html").read_text()
        assert "cwd is 1.00 points below" in html
        assert "One seed each" in html

    def test_names_are_escaped(self, page):
        assert page.count("<script") == 1  # ours
        assert page.count(">&lt;script&gt;alert(1)&lt;/script&gt;</th>") == 1  # the classes
        assert page.count("</i>&lt;script&gt;alert(1)&lt;/script&gt;") == 1  # the legend
        assert "<title>A &lt;title&gt;</title>" in page
        assert "weight: &lt;3&gt;" in page
        assert "$\\frac$ &amp; 道" in page

    def test_needs_nothing_from_outside(self, page):
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
        assert "@import" not in page
        addresses = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', page)
        assert len(addresses) > 3
        for address in addresses:
            assert "".join(address).startswith(("data:", "#"))

    def test_ids_are_unique_so_that_no_chart_clips_another(self, page):
        ids = re.findall(r'\bid="([^"]*)"', page)
        assert len(ids) == len(set(ids)) > 0

    def test_charts_of_every_term_that_was_logged(self, page):
        titles = re.findall(r'aria-label="([^"]*)"', page)
        assert titles[1].startswith("Gain over the plain student")
        assert titles[2:] == ["mIoU on val (%)", "loss", "cwd", "teacher", "plain"]

    def test_what_a_term_logs_is_at_the_end(self, tmp_path):
        history = [
            {"step": s, "train/loss": 1.0, "train/nfd": 1.0, "train/nfd/dead_teacher_channels": 0.1}
            for s in (1, 2)
        ]
        write_report(
            tmp_path / "r.html", report([run("nfd", "distilled", 0, 0.4, history=history)])
        )
        training, _, end = (tmp_path / "r.html").read_text().partition("How this was made")
        assert 'aria-label="nfd: dead teacher channels"' not in training
        assert 'aria-label="nfd: dead teacher channels"' in end

    def test_the_legend_only_has_what_the_labels_show(self, page, tmp_path):
        assert "</i>ignored" in page
        image, label = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
        example = Example(image=image, label=label, predictions={})
        write_report(tmp_path / "r.html", report([run("a", "plain", 0, 0.4)], examples=[example]))
        assert "</i>ignored" not in (tmp_path / "r.html").read_text()

    def test_many_classes_without_pictures_or_history(self, tmp_path):
        names = [f"class {index}" for index in range(19)]
        bare = run("student", "plain", 0, 0.5, class_iou=[0.5] * 19, history=[])
        palette = np.zeros((19, 3), np.uint8)
        few = report([bare], class_names=names, palette=palette, examples=[])
        write_report(tmp_path / "report.html", few)
        html = (tmp_path / "report.html").read_text()
        assert "class 18" in html
        assert "Predictions" not in html
        assert "Training" not in html

    def test_nan_class_in_one_seed_is_the_mean_of_the_others(self):
        nan = float("nan")
        runs = [
            run("plain", "plain", 0, 0.4, class_iou=[0.2, nan, nan]),
            run("plain", "plain", 1, 0.4, class_iou=[0.4, 0.5, nan]),
        ]
        (result,) = report(runs).methods()
        np.testing.assert_allclose(result.class_iou, [0.3, 0.5, nan])

    def test_history_with_null(self):
        summary = dataclasses.replace(
            run("a", "plain", 0, 0.4), history=[{"step": 1, "x": None}, {"step": 2}]
        )
        steps, values = summary.series("x")
        assert steps == [1]
        assert np.isnan(values).all()


def test_what_a_method_adds_to_the_one_that_it_builds_on():
    runs = [run("plain", "plain", seed, 0.40) for seed in (0, 1)]
    runs += [run("cwd", "distilled", seed, 0.50 + 0.02 * seed) for seed in (0, 1)]
    runs += [run("fakd_cwd", "distilled", seed, 0.51) for seed in (0, 1)]
    result = report(runs, builds_on={"fakd_cwd": "cwd"})
    table = method_table(result)
    own = [row[table.header.index("Own effect")] for row in table.texts()]
    # +1.00 and -1.00 points, with Student's t of one degree of freedom, 12.7062.
    assert own == ["–", "–", "+0.00 [-12.71, +12.71] on cwd"]
    assert "“Own effect” is the gain over the method" in note(result)
    rows = list(csv.DictReader(io.StringIO(csv_table(result))))
    assert float(rows[2]["own_effect_low"]) == pytest.approx(-0.127062, abs=1e-6)
    assert "Own effect" not in method_table(report(runs)).header


def test_a_longer_plain_student_is_compared_with_the_plain_one():
    runs = [run("plain student", "plain", 0, 0.40), run("plain student, longer", "plain", 0, 0.43)]
    table = method_table(report([*runs, run("cwd", "distilled", 0, 0.45)]))
    gains = [row[table.header.index("vs plain")] for row in table.texts()]
    assert gains == ["–", "+3.00", "+5.00"]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "'=1"])
def test_no_name_of_the_users_is_a_formula_in_a_spreadsheet(tmp_path, name):
    runs = [run("plain", "plain", 0, 0.5), run(name, "distilled", 0, 0.4)]
    write_runs(tmp_path / "runs.csv", {name: runs}, ["sky", "a", "b"])
    for text in (csv_table(report(runs)), (tmp_path / "runs.csv").read_text()):
        header, *rows = csv.reader(io.StringIO(text))
        assert rows[1][0] == f"'{name}"
        numbers = [cell for row in rows for cell in row if cell.startswith(("-", "+"))]
        assert all(math.isfinite(float(cell)) for cell in numbers)
        assert not [cell for cell in header if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert [row.method for row in read_runs(tmp_path / "runs.csv")[name]] == ["plain", name]


def test_runs_are_read_as_they_were_written(tmp_path):
    runs = [
        run("teacher", "teacher", 0, 0.6, steps=None, learning_rate=None, seconds=None),
        run(
            "cwd, T = 4", "distilled", 3, 0.5, step_seconds=0.25, config_fingerprint="0123456789ab"
        ),
    ]
    splits = {"val": runs, "test/unseen": [dataclasses.replace(x, miou=x.miou / 3) for x in runs]}
    write_runs(tmp_path / "runs.csv", splits, ["sky", "a, b", "miou"])
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + len(runs)
    found = read_runs(tmp_path / "runs.csv")
    assert list(found) == list(splits)
    for split, summaries in splits.items():
        for read, written in zip(found[split], summaries, strict=True):
            expected = dataclasses.asdict(dataclasses.replace(written, history=()))
            np.testing.assert_equal(dataclasses.asdict(read), expected)


def test_the_table_names_the_iou_of_the_only_object():
    runs = [run("plain", "plain", 0, 0.6, class_iou=[0.9, 0.3])]
    table = method_table(report(runs, class_names=["background", "text"]))
    column = table.header.index("IoU of text %")
    assert table.texts()[0][column] == "30.00"
    assert not any("IoU of" in name for name in method_table(report(runs)).header)


def test_scores_that_only_some_runs_have(tmp_path):
    runs = [run("plain", "plain", 0, 0.6), run("cwd", "distilled", 0, 0.7)]
    assert not any("oundary" in name for name in method_table(report(runs)).header)
    runs[1] = dataclasses.replace(runs[1], boundary_iou=0.41, boundary_f1=0.52)
    table = method_table(report(runs))
    column = table.header.index("Boundary IoU %")
    assert [row[column] for row in table.texts()] == ["–", "41.00"]
    write_runs(tmp_path / "runs.csv", {"val": runs}, ["a", "b", "c"])
    read = read_runs(tmp_path / "runs.csv")["val"]
    assert [(x.boundary_iou, x.boundary_f1, x.precision) for x in read] == [
        (None, None, None),
        (0.41, 0.52, None),
    ]


def test_the_report_shows_the_images_to_look_at(tmp_path):
    label = np.zeros((8, 8), np.uint8)
    example = Example(
        image=np.zeros((8, 8, 3), np.uint8),
        label=label,
        predictions={"teacher": label + 1, "student": label + 1},
    )
    image = InspectedImage(name="street <7>", miou=0.123, disputed=0.456, example=example)
    runs = [run("plain", "plain", 0, 0.6)]
    path = tmp_path / "report.html"
    write_report(path, report(runs))
    assert "Lowest IoU" not in path.read_text()
    inspected = Inspected(worst=[image], disputed=[image])
    write_report(path, dataclasses.replace(report(runs), inspected=inspected))
    page = path.read_text()
    line = "street &lt;7&gt;: mIoU 12.3 %, student and teacher against the label on 45.6 %"
    assert page.count(f"<p>{line}</p>") == 2
    assert page.count('alt="teacher of example Labels to check 1"') == 1
