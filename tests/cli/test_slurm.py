"""A real Slurm of one machine: launch/slurm.sh trains, is preempted twice, and comes to the end."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest
import tiny_run

from kdjax.data import sets

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} is installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may start Slurm's daemons"),
]


@pytest.fixture
def slurm():
    """Returns a function that runs a command of Slurm and returns its output."""
    # Not pytest's folder: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="slurm") as directory:
        subprocess.run([ROOT / "tests/slurm/start.sh", directory], check=True)
        environment = os.environ | {"SLURM_CONF": f"{directory}/slurm.conf"}

        def command(*arguments, **variables):
            return subprocess.run(
                [*map(str, arguments)],
                check=True,
                cwd=ROOT,
                env=environment | variables,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout

        yield command
        subprocess.run([ROOT / "tests/slurm/stop.sh", directory], check=True)


@pytest.fixture
def python(tmp_path):
    """An interpreter whose `kdjax train` knows the network of the tests, and takes its time."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} {tiny_run.__file__} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.thorough
def test_a_job_is_preempted_twice_and_finishes_by_itself(slurm, python, tmp_path):
    tiny_run.write_images(tmp_path / "source")
    sets.prepare("folder", tmp_path / "data", source=tmp_path / "source")
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    job = slurm(
        *("sbatch", "--parsable", "--ntasks=2", f"--output={log}", "launch/slurm.sh"),
        *("--config", tiny_run.__file__, "--workdir", workdir),
        *("--config.data.data_dir", tmp_path / "data", "--config.steps", 12),
        PYTHON=str(python),
        **tiny_run.environment(devices=2, pause=0.5),
    ).strip()

    def shown():
        return slurm("scontrol", "show", "job", job)

    def wait_until(condition, *, seconds=480):
        started = time.monotonic()
        while not condition():
            text = log.read_text() if log.exists() else "it has no log"
            assert time.monotonic() - started < seconds, f"{text}\n{shown()}"
            assert "JobState=FAILED" not in shown(), f"{text}\n{shown()}"
            time.sleep(0.2)

    def logged(step):
        metrics = workdir / "metrics.jsonl"
        return lambda: metrics.exists() and f'"step": {step},' in metrics.read_text()

    def said(text):
        return lambda: log.exists() and text in log.read_text()

    def start_again():
        wait_until(lambda: "JobState=PENDING" in shown())
        # Slurm itself lets a job wait for two minutes. In the second in which it ended, its
        # credential still counts as revoked, and a start would fail.
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3seconds")

    wait_until(logged(2))
    # A job of higher priority takes its place.
    slurm("scontrol", "requeue", job)
    start_again()
    wait_until(said("train: continues after step"))
    wait_until(logged(6))
    # Slurm sends this signal two minutes before the time limit.
    slurm("scancel", "--batch", "--signal=TERM", job)
    wait_until(said("requeued after 1 restarts"))
    start_again()
    wait_until((workdir / "result.json").exists)
    wait_until(lambda: "JobState=COMPLETED" in shown())
    text = log.read_text()
    # On a busy machine Slurm may repeat a signal, which then reaches the next start of the job.
    restarts = int(re.findall(r"Restarts=(\d+)", shown())[0])
    assert 2 <= restarts <= 3
    assert 2 <= text.count("train: continues after step") <= restarts
    # Both tasks say so, both times.
    assert text.count("stopped as asked: the checkpoint of step") >= 4
    assert "Traceback" not in text
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13))
