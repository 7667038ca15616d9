"""What `benchmarks.accelerator` makes of what its parts print."""

import csv
import json

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import accelerator
from benchmarks.accelerator import Part

PRINTS = """
import sys, time
print("| loss | size | kdjax, ms |")
print("| --- | --- | ---: |")
print("| cwd | 2 x 3 | 1.5 (1.4 to 1.6) |")
print("Load 2.")
print("  step, planned  unknown")
try:
    import tensorflow
except ImportError as error:
    print(f"TensorFlow is {error}")
if sys.argv[1:] == ["slow"]:
    time.sleep(60)
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    (tmp_path / "prints.py").write_text(PRINTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(accelerator, "machine", lambda: {"devices": "1 x toy (gpu)", "jax": "0"})
    parts = {
        "one": Part("One", "gone", "prints", 1),
        "two": Part("Two", "gone", "prints slow", 1),
    }
    monkeypatch.setattr(accelerator, "PARTS", parts)
    output = tmp_path / "output"
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        given = {"output": str(output), "parts": "one,two", "minutes": "0.3", "small": "true"}
        with flagsaver.as_parsed(**given):
            accelerator.main([])
    return output


def test_each_part_is_a_heading_with_its_command_and_rows_of_figures(measured):
    page = (measured / "README.md").read_text()
    assert "## One\n\n    python -m prints\n\nDone after " in page
    assert "1 x toy (gpu), jax 0." in page
    assert "TensorFlow is hidden" in page
    # Cut off, with what it had printed.
    assert json.loads((measured / "parts" / "two.json").read_text())["ended"].startswith("cut off")
    with (measured / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "part": "one",
        "row": "cwd, 2 x 3",
        "column": "kdjax, ms",
        "value": "1.5",
        "low": "1.4",
        "high": "1.6",
        "ended": "done",
        "devices": "1 x toy (gpu)",
        "jax": "0",
    }
    assert (rows[1]["row"], rows[1]["value"]) == ("step, planned", "unknown")
    assert [row["part"] for row in rows] == ["one", "one", "two", "two"]
