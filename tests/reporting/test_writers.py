"""Writers: JSON lines, TensorBoard, and the console."""

import io
import json
import logging
import os

import numpy as np
import pytest
from etils import epath

from kdjax.reporting import writers
from kdjax.utils.errors import UserError
from kdjax.utils.files import write_atomically


class TestFiles:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "report.html"
        write_atomically(path, "old")
        with pytest.raises(UnicodeEncodeError):
            write_atomically(path, "half \udc80")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_makes_the_folder(self, tmp_path):
        write_atomically(tmp_path / "a" / "b", "ü")
        assert (tmp_path / "a" / "b").read_bytes() == "ü".encode()


class TestJsonLines:
    def test_every_line_is_on_disk_at_once_and_reads_back(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = writers.JsonLines(path)
        writer.scalars(10, {"train/loss": 1.5})
        writer.scalars(10, {"val/miou": 0.25})
        expected = [{"step": 10, "train/loss": 1.5}, {"step": 10, "val/miou": 0.25}]
        assert writers.read_metrics(path) == expected
        assert list(expected[0]) == list(writers.read_metrics(path)[0])
        writer.close()

    def test_what_is_not_finite_is_null(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = writers.JsonLines(path)
        writer.scalars(1, {"a": float("nan"), "b": float("inf"), "c": -0.5})
        writer.close()

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        line = path.read_text().strip()
        assert json.loads(line, parse_constant=refuse) == {
            "step": 1,
            "a": None,
            "b": None,
            "c": -0.5,
        }

    def test_resuming_drops_later_lines_and_a_cut_one(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 10, "a": null}\n{"step": 20, "a": 2.0}\n{"step": 30}\n{"step": 4')
        writer = writers.JsonLines(path, resume_step=20)
        writer.scalars(30, {"a": 3})
        writer.close()
        assert [record["step"] for record in writers.read_metrics(path)] == [10, 20, 30]
        assert path.read_text().startswith('{"step": 10, "a": null}\n')
        assert list(tmp_path.iterdir()) == [path]

    def test_a_line_cut_inside_a_number_is_not_believed(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n{"step": 2}')  # whole JSON, but maybe half a record
        assert writers.read_metrics(path) == [{"step": 1}]

    def test_a_fresh_run_starts_the_file_anew(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 10}\n')
        writers.JsonLines(path).close()
        assert path.read_text() == ""

    def test_a_resumed_run_may_have_lost_its_file(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writers.JsonLines(path, resume_step=5).close()
        assert path.read_text() == ""

    def test_a_spoilt_line_is_named(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n<<<<<<<\n{"step": 2}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
            writers.read_metrics(path)

    def test_an_object_store_gets_the_whole_file_on_close(self, monkeypatch):
        uploads = []
        monkeypatch.setattr(writers, "write_atomically", lambda path, text: uploads.append(text))
        writer = writers.JsonLines("gs://bucket/metrics.jsonl")
        writer.scalars(1, {"a": 1})
        writer.scalars(2, {"a": 2})
        assert uploads == [""]
        writer.close()
        assert uploads == ["", '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n']


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestConsole:
    def drive(self, stream):
        console = writers.Console(200, 100, "cwd", stream=stream)
        for step in range(110, 201, 10):
            console.scalars(step, {"train/loss": 1.25, "train/images_per_second": 210.0})
        evaluation = {"val/miou": 0.54321, "val/pixel_accuracy": 0.9, "val/loss": 0.5}
        console.scalars(200, {**evaluation, "val/seconds": 2.211})
        console.close()
        return stream.getvalue()

    def test_a_log_file_gets_one_line_a_call(self):
        text = self.drive(io.StringIO())
        lines = text.splitlines()
        assert "\r" not in text
        assert len(lines) == 11
        assert lines[0].startswith("cwd: step 110/200, loss 1.2500, 210.0 images/s, 00:0")
        assert lines[0].endswith(" elapsed")
        assert lines[1].endswith(" left")
        assert lines[-1] == (
            "cwd: step 200, val mIoU 54.32 %, val pixel accuracy 90.00 %, val loss 0.5, "
            "val took 2.2 s"
        )

    def test_it_is_silent_when_the_logger_is(self, capsys, monkeypatch):
        monkeypatch.setattr(writers.logger, "isEnabledFor", lambda level: level > logging.INFO)
        console = writers.Console(200, 100, "cwd")
        console.scalars(110, {"train/loss": 1.25, "val/miou": 0.5})
        console.close()
        assert capsys.readouterr() == ("", "")

    def test_a_notebook_gets_a_bar_without_further_packages(self, capsys, monkeypatch):
        monkeypatch.setattr(writers, "_in_notebook", lambda: True)
        console = writers.Console(200, 100, "cwd")
        console.scalars(110, {"train/loss": 1.25})
        console.close()
        assert "| 110/200, loss 1.2500" in capsys.readouterr().out

    def test_time_left_is_reckoned_without_what_the_first_report_waited_for(self, monkeypatch):
        seconds = iter([0.0, 60.0, 65.0, 75.0])
        monkeypatch.setattr(writers.time, "monotonic", lambda: next(seconds))
        console = writers.Console(200, 100, "cwd", stream=(stream := io.StringIO()))
        for step in (110, 120, 130):
            console.scalars(step, {"train/loss": 1.25})
        console.close()
        assert stream.getvalue().splitlines() == [
            "cwd: step 110/200, loss 1.2500, 01:00 elapsed",
            "cwd: step 120/200, loss 1.2500, 01:05 elapsed, 00:40 left",
            "cwd: step 130/200, loss 1.2500, 01:15 elapsed, 00:52 left",
        ]

    def test_a_terminal_gets_a_bar_and_the_evaluation_on_a_line_of_its_own(self):
        text = self.drive(Terminal())
        assert "200/200, loss 1.2500, 210.0 images/s" in text
        assert "\rcwd: step 200, val mIoU 54.32 %" in text
        assert text.count("\n") == 2


class TestWriters:
    def test_tensorboard_and_fan_out(self, tmp_path):
        made = [
            writers.JsonLines(tmp_path / "metrics.jsonl"),
            writers.TensorBoard(tmp_path / "events", resume_step=5),
        ]
        everything = writers.Writers(made)
        everything.scalars(6, {"train/loss": 1.0})
        everything.images(6, {"val/example_0": np.zeros((4, 8, 3), np.uint8)})
        for writer in made:
            writer.close()
        (events,) = (tmp_path / "events").iterdir()
        assert b"train/loss" in events.read_bytes()
        assert b"val/example_0" in events.read_bytes()
        assert writers.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 6, "train/loss": 1.0}]

    def test_an_object_store_gets_copies_of_the_events(self, tmp_path, monkeypatch):
        # Its files would be TensorFlow's, and not the mock's.
        monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)

        def in_bucket(function, path, *args, **options):
            return function(os.fspath(path).replace("gs://bucket", str(tmp_path)), *args, **options)

        with epath.testing.mock_epath(open=in_bucket, makedirs=in_bucket):
            writer = writers.TensorBoard("gs://bucket/run")
            (copy,) = (tmp_path / "run").iterdir()
            begun = copy.read_bytes()
            writer.scalars(6, {"train/loss": 1.0})
            assert copy.read_bytes() == begun
            writer.images(6, {"val/example_0": np.zeros((4, 8, 3), np.uint8)})
            assert b"train/loss" in copy.read_bytes()
            assert b"val/example_0" in copy.read_bytes()
            writer.scalars(7, {"train/lr": 1.0})
            writer.close()
        assert copy.read_bytes().startswith(begun)
        assert b"train/lr" in copy.read_bytes()
        assert list((tmp_path / "run").iterdir()) == [copy]

    def test_what_is_no_writer_is_named_with_what_it_lacks(self):
        class Half:
            def scalars(self, step, values):
                pass

        message = r"writers\[1\] is a Half without the method images; a writer has scalars\(step, "
        with pytest.raises(UserError, match=message):
            writers.check_writers([writers.Writers([]), Half()])
