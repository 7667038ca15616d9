"""Measures on a GPU everything that needs one, in at most 25 minutes: a page and a table.

    python -m benchmarks.accelerator --output gpu --camvid CAMVID
    python -m benchmarks.accelerator --output gpu --camvid CAMVID --parts step,plan
    python -m benchmarks.accelerator --output rehearsal --small

Needs JAX and PyTorch with GPU support, and no TensorFlow. Each part is a benchmark in its own
process. The process is ended when the minutes of the part, or those of all parts (`--minutes`), are
over. Its output up to then is kept.
The page (`README.md`) and the table (`figures.csv`) are written after each part, from all parts in
the folder, so that parts may be measured at different times. CAMVID: see `benchmarks.camvid`.

With `--small`, all parts run at small sizes on any device, with TensorFlow hidden from them.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from kdjax.cli import command
from kdjax.utils.errors import UserError
from kdjax.utils.files import write_atomically

ROOT = pathlib.Path(__file__).resolve().parents[1]
PSPNET = "configs/published.py:cityscapes,pspnet_r101_r18,cwd"
CAMVID_CWD = "configs/camvid_pspnet_r18_cwd.py"


@dataclasses.dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
      title: the heading.
      words: the words after `python -m`; {camvid} stands for the folder.
      small: the same words for a rehearsal.
      minutes: the time limit on a GPU; a rehearsal has the minutes of all parts.
    """

    title: str
    words: str
    small: str
    minutes: float

    def limit(self) -> float:
        """Returns the time limit in seconds."""
        return math.inf if SMALL.value else 60 * self.minutes


PARTS = {
    "step": Part(
        "A training step compared with PyTorch's",
        "benchmarks.train_step --methods cwd,nfd,pfs,pixelwise_kl --rounds 10 --alone plain,cwd",
        "benchmarks.train_step --methods cwd --rounds 2 --alone cwd --teacher pspnet_r18 "
        "--teacher_width 8 --student_width 4 --crop 33,49 --batch_size 2",
        11,
    ),
    "plan": Part(
        "Planned compared with measured",
        f"kdjax plan --config {PSPNET} --topology local --measure --config.data.batch_size=8 "
        "--config.student.dtype=bfloat16 --config.teacher.dtype=bfloat16",
        f"kdjax plan --config {CAMVID_CWD} --num_classes 11 --topology local --measure "
        "--config.data.batch_size=2 --config.data.crop_size=(32,48) --config.teacher.width=8",
        3,
    ),
    "losses": Part(
        "The losses compared with PyTorch's",
        "benchmarks.losses --rounds 10 --only cwd,nfd,pfs,pixelwise_kl,upsampled",
        "benchmarks.losses --quick --only cwd,nfd",
        4,
    ),
    "input": Part(
        "Crops out of the device's memory",
        "benchmarks.input_device",
        "benchmarks.input_device --examples 4 --batch_size 2 --crop 64 --rounds 2 --dtype float32",
        2,
    ),
    "camvid": Part(
        "CamVid at 360 x 480", "benchmarks.camvid --source {camvid}", "benchmarks.camvid --small", 5
    ),
}

OUTPUT = flags.DEFINE_string("output", None, "The folder for the page and the table.")
CAMVID = flags.DEFINE_string("camvid", None, "The folder of CamVid; its part is skipped otherwise.")
CHOSEN = flags.DEFINE_list("parts", list(PARTS), f"The parts, out of {', '.join(PARTS)}.")
SMALL = flags.DEFINE_bool("small", False, "Rehearse at small sizes.")
MINUTES = flags.DEFINE_float("minutes", 25.0, "Time limit of all parts together.", 0.1)

MACHINE = """
import json, torch
from kdjax.utils import environment
print(json.dumps(environment.describe() | {"torch": torch.__version__}))
"""


def main(argv: list[str]) -> None:
    del argv
    if unknown := [name for name in CHOSEN.value if name not in PARTS]:
        raise UserError(f"--parts: there is no {unknown[0]}, only {', '.join(PARTS)}")
    if not OUTPUT.value:
        raise UserError("--output is missing: a folder for the page and the table")
    output = pathlib.Path(OUTPUT.value)
    (output / "parts").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * MINUTES.value
    ran_on = machine()
    for name in CHOSEN.value:
        if name == "camvid" and not (SMALL.value or CAMVID.value):
            print("camvid is left out: no --camvid")
            continue
        left = deadline - time.monotonic()
        print(f"{name}: at most {min(left, PARTS[name].limit()):.0f} s", flush=True)
        found = {**run(PARTS[name], left), "machine": ran_on}
        write_atomically(output / "parts" / f"{name}.json", json.dumps(found, indent=1))
        write_atomically(output / "README.md", page(gather(output)))
        with (output / "figures.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table(gather(output)))
        print(f"{name}: {found['ended']} after {found['seconds']:.0f} s", flush=True)


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Runs a part. Returns its output and how it ended."""
    words = (part.small if SMALL.value else part.words).format(camvid=CAMVID.value).split()
    limit = max(1.0, min(seconds, part.limit()))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as printed:
        # JAX and PyTorch share the GPU in some parts, so that neither may reserve most of it.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        environment["PYTHONUNBUFFERED"] = "1"  # what is cut off has printed all that it had
        if SMALL.value:
            # Compiling takes most of a rehearsal.
            environment.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
            for package in ("tensorflow", "tensorflow_datasets"):
                (pathlib.Path(folder) / f"{package}.py").write_text("raise ImportError('hidden')\n")
            environment["PYTHONPATH"] = os.pathsep.join(
                filter(None, [folder, environment.get("PYTHONPATH")])
            )
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=environment,
            stdout=printed,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            ended = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"cut off at {limit:.0f} s"
        finally:
            if process.poll() is None:
                # Ends its child processes too, because one of them may hold the GPU.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        spent = time.monotonic() - started
        printed.seek(0)
        text = printed.read()
    return {
        "title": part.title,
        "command": f"python -m {' '.join(words)}",
        "printed": text,
        "ended": ended,
        "seconds": spent,
    }


def machine() -> dict[str, str]:
    """Returns hardware and versions, from another process: this one must not take the GPU."""
    run = subprocess.run(
        [sys.executable, "-c", MACHINE], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def gather(output: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the parts that were measured, in their order."""
    files = {name: output / "parts" / f"{name}.json" for name in PARTS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def page(parts: dict[str, dict[str, Any]]) -> str:
    """Returns the page: the output of each part with its command and hardware."""
    lines = ["# Measured on an accelerator", ""]
    if not any("gpu" in part["machine"]["devices"] for part in parts.values()):
        lines = ["# A rehearsal: no accelerator was there", ""]
    for part in parts.values():
        ran_on = ", ".join(f"{name} {value}" for name, value in part["machine"].items())
        lines += [f"## {part['title']}", "", f"    {part['command']}", ""]
        lines += [f"{part['ended'].capitalize()} after {part['seconds']:.0f} s. {ran_on}.", ""]
        body = part["printed"].strip()
        # Tables are Markdown; a plan is text in columns.
        lines += [body, ""] if "\n|" in f"\n{body}" else ["```", body, "```", ""]
    return "\n".join(lines)


def table(parts: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Returns a row for each figure, with its hardware."""
    names = list(dict.fromkeys(key for part in parts.values() for key in part["machine"]))
    yield ["part", "row", "column", "value", "low", "high", "ended", *names]
    for name, part in parts.items():
        known = [part["ended"], *(part["machine"].get(key, "") for key in names)]
        for row, column, value in figures(part["printed"]):
            # A median with its quartiles, as the benchmarks write them.
            spread = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)(?: %)?", value)
            yield [name, row, column, *(spread.groups() if spread else (value, "", "")), *known]


def figures(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields row, column, and value of Markdown tables, and of lines with a name and a value.

    The cells of left-aligned columns name the row.
    """
    header: list[str] = []
    keys = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            if found := re.match(r"\s+(\S.*?)\s{2,}(\S.*)$", line):
                yield found[1], "", found[2]
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not header:
            header = cells
        elif set("".join(cells)) <= set("-: "):
            keys = next((i for i, x in enumerate(cells) if x.endswith(":")), 1)
        else:
            for column, value in list(zip(header, cells, strict=False))[keys:]:
                yield ", ".join(cells[:keys]), column, value


if __name__ == "__main__":
    command.run(main)
