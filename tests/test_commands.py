"""The commands as a user starts them: a mistake is one line and a non-zero exit."""

import pathlib
import re
import subprocess
import sys

import jax
import pytest

from kdjax.experiments import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--config=configs/quickstart.py", "--config.optimizer.learning_rat=1"],
            'kdjax.train: error: in --config: .*Did you mean "learning_rate"',
        ),
        (
            ["train", "--config=configs/quickstart.py", "--config.steps=many"],
            "kdjax.train: error: flag --config.steps=many: .*; see --help",
        ),
        (
            ["train", "--config=configs/none.py"],
            "kdjax.train: error: configs/none.py: no such config file",
        ),
        (
            ["predict", "--images=x", "--output=y", "--window=4,4"],
            "kdjax.predict: error: --window is for sliding windows; add --mode slide",
        ),
        (
            ["predict", "--images", "a.png", "b.png", "c.png", "--output=y"],
            'kdjax.predict: error: "b.png" and 1 more belongs to no flag: .* in quotes',
        ),
        (
            ["train", "--config=configs/quickstart.py", "--config.data.flip", "False"],
            'kdjax.train: error: "False" belongs to no flag: .* as --flag=false',
        ),
        (
            ["predict", "--images=x", "--output="],
            "kdjax.predict: error: --output is empty; give it a value, or leave it out",
        ),
        (
            ["predict", "--images=x", "--output=y", "--opacity=nan"],
            "kdjax.predict: error: --opacity is nan; it takes a finite number",
        ),
        (["compare"], "kdjax.compare: error: --config is missing"),
        (["evaluate"], "kdjax.evaluate: error: .*: no run here .config.json is missing"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    command = [sys.executable, "-m", f"kdjax.{arguments[0]}", *arguments[1:]]
    run = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [("ENOSPC", "No space left on device"), ("ENAMETOOLONG", "File name too long")],
)
def test_a_disk_that_takes_nothing_is_one_line(number, said):
    """Whichever file it is that cannot be written."""
    code = f"""
import errno, os, sys
from kdjax import command
def main(argv):
    raise OSError(errno.{number}, os.strerror(errno.{number}), "runs/x/metrics.jsonl")
sys.argv = ["train"]
command.run(main)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stderr == f"kdjax.train: error: runs/x/metrics.jsonl: {said}\n"
    assert run.returncode == 2


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("pass", 0, r"kdjax\.train: in the background: OSError: of a thread\n"),
        ("raise UserError('wrong')", 2, r"kdjax\.train: error: wrong\n"),
        (
            "raise KeyError('fault')",
            1,
            r"(?s)Traceback.*OSError: of a thread\n.*KeyError: 'fault'\n",
        ),
    ],
)
def test_errors_of_threads_do_not_bury_the_message(end, status, said):
    code = f"""
import sys, threading
from kdjax import command
from kdjax.errors import UserError
def fail():
    raise OSError("of a thread")
class Late:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
def main(argv):
    threads = [threading.Thread(target=fail) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    Late()
    {end}
sys.argv = ["train"]
command.run(main)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == status
    assert re.fullmatch(said, run.stderr), run.stderr


def test_a_report_that_is_being_written_is_finished_when_asked_to_stop(tmp_path):
    code = """
import os, signal, sys
from kdjax import command, train
train.train = lambda *arguments, **options: None
train._report = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)
command.run(train.main, resumes=True)
"""
    arguments = ["--config=configs/quickstart.py", f"--workdir={tmp_path}"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    said = f"kdjax.-c: stopped as asked: the report {tmp_path}/report.html is written\n"
    assert (run.returncode, run.stderr) == (75, said)


def test_an_empty_variable_puts_no_compiled_programs_into_the_working_directory(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    environment.enable_compilation_cache()
    assert updates == {"jax_compilation_cache_dir": "/home/somebody/.cache/kdjax/jax"}
