"""The launch scripts, with `--dry-run` and with fake programs."""

import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys

import pytest
import thorough
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ["--config", "configs/X.py", "--workdir", "runs/a b"]
TPU = ["--name", "kdjax", "--zone", "us-west4-a", "--type", "v5litepod-16"]


def launch(script, *arguments, **environment):
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env=os.environ | environment,
    )


def pretend(directory, name, body):
    """Makes a fake program, which the path finds before the real one."""
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def calls(directory):
    return (directory / "calls").read_text().splitlines()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    scripts = [*map(str, LAUNCH.glob("*.sh"))]
    run = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert len(scripts) == 3
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu.sh"])
def test_without_arguments_the_usage_is_shown(script):
    run = launch(script)
    assert run.returncode == 2
    assert "--config configs/X.py --workdir" in run.stderr


def test_local_prints_every_process():
    run = launch("local.sh", "--processes", "2", "--gpus", "--dry-run", "--", *TRAIN)
    assert run.returncode == 0, run.stderr
    first, second, note = run.stdout.splitlines()
    for number, line in enumerate((first, second)):
        assert line.startswith(f"env CUDA_VISIBLE_DEVICES={number} python -m kdjax train ")
        assert line.endswith(f"--num_processes 2 --process_id {number} &")
        assert r"--workdir runs/a\ b --coordinator localhost:8476" in line
    assert "status 75" in note


# Process 0 of every attempt ends as told; process 1 only when it is stopped.
PROCESSES = """
id=${*: -1}
if [ "$id" = 1 ]; then exec sleep 60; fi
echo attempt >>"$CALLS"
status=$(sed -n "$(grep -c . "$CALLS")p" "$STATUSES")
sleep 0.2
if [ "$status" = killed ]; then kill -KILL $$; fi
exit "$status"
"""


@pytest.mark.parametrize(
    ("statuses", "attempts", "last"),
    thorough.after(
        2,
        [
            (["75", "killed", "0"], 3, 0),
            (["2"], 1, 2),
            (["75", "1", "0"], 2, 1),
            (["75"] * 4, 3, 75),
        ],
    ),
)
def test_local_continues_after_preemption_and_death_only(tmp_path, statuses, attempts, last):
    (tmp_path / "statuses").write_text("\n".join(statuses))
    # A process that succeeds has no other to wait for.
    processes = "1" if statuses[-1] == "0" and last == 0 else "2"
    run = launch(
        *("local.sh", "--processes", processes, "--restarts", "2", "--", *TRAIN),
        PYTHON=str(pretend(tmp_path, "python", PROCESSES)),
        CALLS=str(tmp_path / "calls"),
        STATUSES=str(tmp_path / "statuses"),
        KDJAX_GRACE="1",
    )
    assert run.returncode == last, run.stderr
    assert len(calls(tmp_path)) == attempts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local.sh", "--processes", "0"], "--processes is '0'; give a whole number, 1 or more"),
        (["local.sh", "--processes", "-1"], "--processes is '-1'; give a whole number, 1 or more"),
        (["local.sh", "--processes", "x"], "--processes is 'x'; give a whole number, 1 or more"),
        (["local.sh", "--processes"], "--processes is '--'; give a whole number, 1 or more"),
        (["local.sh", "--restarts", "x"], "--restarts is 'x'; give a whole number, 0 or more"),
        (["local.sh", "--port", "70000"], "--port is '70000'; .* 1 or more, 65535 at most"),
        (["local.sh", "--proceses", "2"], "--proceses is no option; the flags of kdjax train come"),
        (["tpu.sh", "--name", "--zone", "z"], "--name needs a value"),
        (["tpu.sh", *TPU, "--spto"], "--spto is no option; the flags of kdjax train come after --"),
        (["kubernetes.py", "gpu", "--processes", "0"], "--processes: it is '0'; .* 1 or more"),
        (["kubernetes.py", "gpu", "--chips", "x"], "--chips: it is 'x'; .* 1 or more"),
        (["kubernetes.py", "gpu", "--restarts", "-1"], "--restarts: it is '-1'; .* 0 or more"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(arguments, message):
    run = launch(*arguments, "--", *TRAIN)
    assert run.returncode == 2
    assert re.search(message, run.stderr.splitlines()[-1]), run.stderr


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["local.sh", "--"], "KDJAX_GRACE", "KDJAX_GRACE is 'x'; give whole seconds"),
        (["slurm.sh"], "KDJAX_RESTARTS", "KDJAX_RESTARTS is 'x'; give a whole number, 0 or more"),
        (["tpu.sh", *TPU, "--"], "KDJAX_POLL", "KDJAX_POLL is 'x'; give seconds"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(arguments, variable, message):
    run = launch(*arguments, *TRAIN, **{variable: "x"})
    assert run.returncode == 2
    assert run.stderr == f"launch/{arguments[0]}: {message}\n"


def test_a_program_that_is_missing_is_named(tmp_path):
    # Not the python3 of the path, which may be a script that needs other programs, as pyenv's.
    programs = {name: shutil.which(name) for name in ("bash", "env")} | {"python3": sys.executable}
    for name, program in programs.items():
        (tmp_path / name).symlink_to(program)
    gpu = ["--name=a", "--image=b", "--processes=1", "--chips=1"]
    for script, program in (
        (["tpu.sh", *TPU], "gcloud"),
        (["kubernetes.py", "gpu", *gpu], "kubectl"),
    ):
        run = launch(*script, "--", *TRAIN, PATH=str(tmp_path))
        assert run.returncode == 2
        assert run.stderr == f"launch/{script[0]}: {program} is not installed\n"


def test_local_does_not_join_who_has_the_port(tmp_path):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        run = launch(
            *("local.sh", "--port", str(port), "--", *TRAIN),
            PYTHON=str(pretend(tmp_path, "python", 'echo started >>"$CALLS"')),
            CALLS=str(tmp_path / "calls"),
        )
    assert run.returncode == 2
    assert run.stderr.startswith(f"launch/local.sh: port {port} is taken by another run")
    assert not (tmp_path / "calls").exists()


CHILD = """
import os, signal, time
from kdjax.utils import processes
def say(word):
    os.write(1, f"{word} {os.getpid()}\\n".encode())  # a signal may come in the middle of `print`
signal.signal(signal.SIGTERM, lambda *_: (say("asked"), os._exit(75)))
processes.end_with_parent()
say("runs")
time.sleep(100)
"""


def test_the_processes_of_local_are_asked_to_stop_when_it_is_killed(tmp_path):
    python = pretend(tmp_path, "python", 'exec "$REAL" -c "$CHILD"')
    with subprocess.Popen(
        [LAUNCH / "local.sh", "--processes", "2", "--port", "1", "--", *TRAIN],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHON": str(python), "REAL": sys.executable, "CHILD": CHILD},
    ) as script:
        runs = {script.stdout.readline().removeprefix("runs ") for _ in range(2)}
        script.kill()
        # The processes have the pipe open, too.
        said = script.stdout.read().splitlines(keepends=True)
    assert {line.removeprefix("asked ") for line in said} == runs


def test_slurm_prints_the_step_and_what_follows():
    run = launch("slurm.sh", "--dry-run", *TRAIN)
    assert run.returncode == 0, run.stderr
    command, *notes = run.stdout.splitlines()
    assert command == (
        r"srun --kill-on-bad-exit=1 python -m kdjax train "
        r"--config configs/X.py --workdir runs/a\ b "
    )
    assert "SIGTERM" in notes[0]
    assert "scontrol requeue" in notes[1]


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [("75", "0", True), ("137", "3", True), ("75", "100", False), ("2", "0", False)],
)
def test_slurm_requeues_after_preemption_and_death_only(tmp_path, status, restarts, requeued):
    pretend(tmp_path, "srun", f'echo "srun $*" >>"$CALLS"; exit {status}')
    pretend(tmp_path, "scontrol", 'echo "scontrol $*" >>"$CALLS"')
    run = launch(
        *("slurm.sh", *TRAIN),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        SLURM_JOB_ID="7",
        SLURM_RESTART_COUNT=restarts,
    )
    assert run.returncode == int(status)
    assert ("scontrol requeue 7" in calls(tmp_path)) == requeued


def test_slurm_hands_the_signal_on_and_waits_until_all_is_saved(tmp_path):
    pretend(
        *(tmp_path, "srun"),
        'sleep 0.5; kill -TERM $PPID; until [ -s "$CALLS" ]; do sleep 0.1; done; sleep 1; '
        'echo saved >>"$CALLS"; exit 75',
    )
    pretend(tmp_path, "scontrol", 'echo "scontrol $*" >>"$CALLS"')
    # If Slurm itself preempts the job, scancel keeps trying for longer than `launch` waits.
    pretend(tmp_path, "scancel", 'echo "scancel $*" >>"$CALLS"; exec sleep 100')
    run = launch(
        *("slurm.sh", *TRAIN),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        SLURM_JOB_ID="7",
    )
    assert run.returncode == 75
    assert calls(tmp_path) == ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"]


def test_tpu_prints_all_its_commands():
    run = launch("tpu.sh", *TPU, "--spot", "--delete", "--dry-run", "--", *TRAIN)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    create, archive, copy, install, start, follow, status, note, delete = lines
    assert "queued-resources create kdjax" in create
    assert "--runtime-version v2-alpha-tpuv5-lite --spot" in create
    assert archive.startswith("git archive")
    assert "tpu-vm scp" in copy
    assert "requirements.txt" in install
    assert "--worker all" in start
    assert r"--workdir runs/a\\ b" in start
    assert "tail" in follow
    assert "cat\\ kdjax/status" in status
    assert note.startswith("# again on status 75")
    assert "queued-resources delete kdjax" in delete


# A slice that is there after it was created; the training ends with the next of the statuses, and
# "gone" is a preemption of the slice in its midst.
GCLOUD = """
echo "$*" >>"$CALLS"
cd "$(dirname "$CALLS")"
case $* in
  *'queued-resources describe'*) cat state 2>/dev/null || exit 1 ;;
  *'queued-resources create'*) echo ACTIVE >state ;;
  *'queued-resources delete'*) rm -f state ;;
  *'kill -0 $(cat kdjax/pid)'*) exit 1 ;;
  *'cat kdjax/status'*)
    status=$(head -1 statuses)
    sed -i 1d statuses
    if [ "$status" = gone ]; then echo SUSPENDED >state; exit 255; fi
    echo "$status" ;;
esac
"""


@pytest.mark.parametrize(
    ("statuses", "created", "started", "last"),
    [(["0"], 1, 1, 0), (["gone", "75", "0"], 2, 3, 0), (["2", "0"], 1, 1, 2)],
)
def test_tpu_resumes_after_preemption_only(tmp_path, statuses, created, started, last):
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    pretend(tmp_path, "gcloud", GCLOUD)
    run = launch(
        *("tpu.sh", *TPU, "--", *TRAIN),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        KDJAX_POLL="0.1",
    )
    assert run.returncode == last, run.stderr
    found = (tmp_path / "calls").read_text()
    assert found.count("queued-resources create") == created
    assert found.count("nohup sh -c") == started


def jobset(kind, *options):
    arguments = ["--name", "kdjax", "--image", "registry/kdjax:1", "--processes", "4"]
    run = launch("kubernetes.py", kind, *arguments, *options, "--dry-run", "--", *TRAIN)
    assert run.returncode == 0, run.stderr
    assert "$" not in run.stdout.replace("$(PROCESS_ID)", "")
    return yaml.safe_load(run.stdout)


def test_kubernetes_renders_a_jobset_for_gpus():
    manifest = jobset("gpu", "--chips", "8")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert manifest["metadata"]["name"] == "kdjax"
    assert job["parallelism"] == job["completions"] == 4
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["args"] == [
        *TRAIN,
        *("--coordinator", "kdjax-workers-0-0.kdjax:8476"),
        *("--num_processes", "4", "--process_id", "$(PROCESS_ID)"),
    ]


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_kubernetes_stops_on_a_mistake_and_restarts_on_the_rest(kind):
    manifest = jobset(
        *(kind, "--chips", "4", "--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4")
    )
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    disruption, mistake = job["podFailurePolicy"]["rules"]
    assert disruption["action"] == "Count"
    assert mistake["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [1, 2],
    }
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 100
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert job["backoffLimit"] == 0


def test_kubernetes_names_what_is_missing():
    run = launch(
        *("kubernetes.py", "tpu", "--name", "kdjax", "--image", "i", "--processes", "4"),
        *("--chips", "4", "--dry-run", "--", *TRAIN),
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("error: tpu needs --accelerator and --topology")


@pytest.mark.parametrize("name", ["cuda", "tpu"])
def test_images_hold_what_the_project_was_tested_with(name):
    text = (LAUNCH / f"Dockerfile.{name}").read_text()
    (line,) = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith("jax>=")
    ]
    assert line.removeprefix("jax") in text
    assert text.rstrip().endswith('ENTRYPOINT ["python", "-m", "kdjax", "train"]')
