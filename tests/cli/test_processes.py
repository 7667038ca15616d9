"""Several processes of JAX compute the same as one, and end together."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import warm
from jax import numpy as jnp

from kdjax.data import sets
from kdjax.data.loading.sampling import batch_by_size
from kdjax.evaluation.evaluator import evaluate
from kdjax.training.sharding import Placement
from kdjax.utils import processes
from kdjax.utils.errors import Transient, UserError

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZES = [(8, 6), (8, 6), (4, 4), (8, 6), (4, 4)]


def eval_batches(process_index, process_count, batch_size=4):
    """Five images of two sizes, whose label is off by one in the first row."""
    shared = {"process_index": process_index, "process_count": process_count}
    for batch in batch_by_size(enumerate(SIZES), batch_size, **shared):
        images = np.zeros((len(batch.indices), *batch.size, 3), np.uint8)
        labels = np.full(images.shape[:-1], 255, np.uint8)
        for row, index in enumerate(batch.indices):
            if index >= 0:
                images[row] = np.random.default_rng(index).integers(0, 3, images[row].shape)
                labels[row] = images[row, ..., 0]
                labels[row, 0] = (labels[row, 0] + 1) % 3
        sizes = np.full((len(labels), 2), batch.size, np.int32)
        yield {"image": images, "label": labels, "size": sizes}


def red(state, images, sizes):
    """Returns the red channel, in place of a network."""
    return images[..., 0].astype(jnp.int32)


def child(process_index, port):
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, process_index)
    placement = Placement()
    rows = np.arange(4, dtype=np.int32) + 4 * process_index
    batch = placement.put_batch({"rows": rows})["rows"]
    order = jax.jit(lambda rows: rows, out_shardings=placement.replicated)(batch)
    batches = eval_batches(process_index, 2)
    scores = evaluate(jax.jit(red), None, batches, 3, placement.put_batch)
    print("rows", *np.asarray(order), "confusion", *scores.confusion.ravel())


def test_two_processes_share_batches_and_evaluation():
    port = tiny_run.free_port()
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", HERE)))
    code = "import sys, test_processes as t; t.child(int(sys.argv[1]), int(sys.argv[2]))"
    variables = {"PATH": "", "PYTHONPATH": path}
    children = [warm.Process(["-c", code, index, port], env=variables) for index in range(2)]
    outputs = [child.communicate(timeout=120) for child in children]
    alone = evaluate(red, None, eval_batches(0, 1, 8), 3, Placement().put_batch)
    assert alone.confusion.sum() == sum(height * width for height, width in SIZES)
    expected = " ".join(["rows", *map(str, range(8)), "confusion"])
    expected += " " + " ".join(map(str, alone.confusion.ravel()))
    for output, errors in outputs:
        assert output.splitlines()[-1] == expected, errors[-2000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    tiny_run.write_images(source)
    sets.prepare("folder", target, source=source)
    return target


# For two and for three processes.
DEVICES = 6
BATCHES = ("--config.data.batch_size=12", "--config.data.eval_batch_size=12")


def start(data, workdir, count, **options):
    """Starts a run of `count` processes with six devices in all."""
    port = tiny_run.free_port()
    return [
        tiny_run.start(
            data,
            workdir,
            *(f"--coordinator=localhost:{port}", f"--num_processes={count}"),
            *(f"--process_id={index}", *BATCHES),
            devices=DEVICES // count,
            **options,
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The records of one process with all devices."""
    workdir = tmp_path_factory.mktemp("alone")
    child = tiny_run.start(data, workdir, *BATCHES, devices=DEVICES)
    ((status, _, errors),) = tiny_run.finish([child])
    assert status == 0, errors
    return tiny_run.records(workdir)


@pytest.mark.thorough
def test_processes_that_are_killed_or_stop_together_continue_and_do_what_one_does(
    data, alone, tmp_path
):
    """A run of three starts: one of three is killed, two stop as asked, two end."""
    children = start(data, tmp_path, 3, pause=0.5)
    tiny_run.wait_for_step(tmp_path, 3, children)
    children[2].kill()
    killed = time.monotonic()
    ended = tiny_run.finish(children)
    assert time.monotonic() - killed < 60
    del ended[2]
    for status, _, errors in ended:
        assert status == 75, errors
        (line,) = [line for line in errors.splitlines() if " of 3 stops: " in line]
        assert line.endswith("process 2 ended; the same command continues from the last checkpoint")
        assert "Traceback" not in errors
    # Fewer processes may go on, with as many devices.
    children = start(data, tmp_path, 2, pause=0.5)
    tiny_run.wait_for_step(tmp_path, 6, children)
    # One is asked; both save the same step.
    children[1].send_signal(signal.SIGTERM)
    ended = tiny_run.finish(children)
    for status, _, errors in ended:
        assert status == 75, errors
        assert "stopped as asked: the checkpoint of step" in errors
    assert "continues after step 2" in ended[0][1]
    ended = tiny_run.finish(start(data, tmp_path, 2))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "continues after step" in ended[0][1]
    # Only the first process speaks.
    assert "train:" not in ended[1][1]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    tiny_run.assert_same(tmp_path, alone)
    # The label maps of all processes were looked at.
    inspected = json.loads((tmp_path / "result.json").read_text())["inspected"]
    worst = inspected["val"]["worst"]
    assert sorted(image["name"] for image in worst) == ["a0", "b1", "b2"]


WAITING = """
import os, time
from kdjax.utils import processes
from kdjax.cli import command
from kdjax.utils.errors import Transient, UserError
FLAGS = processes.define_flags()
def fail(message):
    raise UserError(message)
def main(argv):
    processes.join(FLAGS)
    print("joined", flush=True)
    if argv[1] == "collective":
        while not os.path.exists(argv[2]):
            time.sleep(0.1)
        raise Transient("cannot write x: UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    if argv[1] == "mistake":
        fail("cannot write x: No space left on device")
    if argv[1] == "led":
        processes.lead(lambda: fail("there is no room"))
    time.sleep(float(argv[1]))
command.run(main, words=2, resumes=True)
"""


def wait(port, work, *arguments):
    """Starts a process that joins others, then has `work`.

    Args:
      port: of the first process.
      work: for seconds, or what goes wrong and, behind a blank, the file that it waits for.
      *arguments: further flags.
    """
    flags = (f"--coordinator=localhost:{port}", *arguments)
    return warm.Process(["-c", WAITING, *str(work).split(), *flags], env=os.environ)


def wait_together(*works):
    """Starts a process for each work, and returns when they have joined."""
    port, count = tiny_run.free_port(), f"--num_processes={len(works)}"
    children = [
        wait(port, work, count, f"--process_id={index}") for index, work in enumerate(works)
    ]
    while {child.output() for child in children} != {"joined\n"}:
        assert all(child.poll() is None for child in children), tiny_run.finish(children)
        time.sleep(0.1)
    return children


@pytest.mark.thorough
def test_processes_wait_for_the_last_one_and_end_together():
    children = wait_together(0, 4, 0)
    time.sleep(2)
    assert [child.poll() for child in children] == [None] * 3
    for status, _, errors in tiny_run.finish(children):
        assert status == 0, errors
        assert "stops" not in errors


@pytest.mark.thorough
def test_one_is_killed_while_another_is_at_its_end_and_a_third_meets_it_in_a_collective(
    tmp_path,
):
    killed = tmp_path / "killed"
    children = wait_together(f"collective {killed}", 0, 100)
    children[2].kill()
    killed.touch()
    for status, _, errors in tiny_run.finish(children)[:2]:
        assert status == 75, errors
        # The other survivor may be gone as well.
        assert len(re.findall(r"stops: process (\d, )*2 ended", errors)) == 1
        assert "cannot write" not in errors


@pytest.mark.thorough
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_alone_ends_the_others_with_its_line(failing):
    works = ["100", "100"]
    works[failing] = "mistake"
    started = time.monotonic()
    ended = tiny_run.finish(wait_together(*works))
    assert time.monotonic() - started < 40
    reason = "-c: error: cannot write x: No space left on device"
    assert [status for status, _, _ in ended] == [2, 2]
    lines = [errors.splitlines()[-1] for _, _, errors in ended]
    assert lines[failing] == reason
    assert lines[1 - failing] == (
        f"process {1 - failing} of 2 stops: process {failing} failed: {reason}"
    )


def test_what_the_leading_process_cannot_do_all_say():
    for status, _, errors in tiny_run.finish(wait_together("led", "led")):
        assert status == 2
        assert errors.splitlines()[-1] == "-c: error: there is no room"


@pytest.mark.thorough
def test_a_process_says_that_it_waits_for_one_that_does_not_come():
    port = tiny_run.free_port()
    child = wait(port, 0, "--num_processes=2", "--process_id=1")
    line = f"Waiting for the other processes of the run at localhost:{port}\n"
    started = time.monotonic()
    while line not in child.errors():
        assert time.monotonic() - started < 60
        time.sleep(0.5)
    child.kill()


def test_a_process_that_waits_for_the_others_is_asked_to_stop():
    port = tiny_run.free_port()
    child = wait(port, 0, "--num_processes=2", "--process_id=0")
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
            break
        assert child.poll() is None, tiny_run.finish([child])
        time.sleep(0.1)
    # While the main thread is not in Python.
    child.send_signal(signal.SIGTERM)
    ((status, _, errors),) = tiny_run.finish([child])
    assert status == 75
    assert errors.splitlines()[-1] == "-c: stopped as asked: the same command continues"


@pytest.mark.thorough
def test_when_the_first_process_is_killed_jax_ends_the_other():
    children = wait_together(100, 100)
    children[0].kill()
    _, (status, _, errors) = tiny_run.finish(children)
    # More than 128 for a shell, so that launchers try again.
    assert status == -signal.SIGABRT
    assert "the leader task was preempted/died" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--coordinator, --num_processes and --process_id go together: give all or none"),
        (
            ["--num_processes=2", "--process_id=2"],
            "--process_id is 2; --num_processes 2 has 0 to 1",
        ),
        (["--num_processes=0", "--process_id=0"], "--num_processes is 0; give 1 or more"),
    ],
)
def test_flags_of_processes_that_make_no_sense(arguments, message):
    ((status, _, errors),) = tiny_run.finish([wait(1, 0, *arguments)])
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.endswith(f"error: {message}\n")


@pytest.mark.parametrize(
    ("said", "kind"),
    [("DEADLINE_EXCEEDED: Barrier timed out", Transient), ("no such cluster", UserError)],
)
def test_the_others_may_come_too_late(monkeypatch, said, kind):
    def fail(*arguments, **options):
        raise RuntimeError(said)

    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    monkeypatch.setattr(processes.jax.config, "update", lambda *arguments: None)
    asked = SimpleNamespace(value=f"localhost:{tiny_run.free_port()}"), SimpleNamespace(value=1)
    with pytest.raises(kind, match=f"do not find each other: {said}"):
        processes.join(processes.Flags(*asked, SimpleNamespace(value=0)))


def test_a_port_that_is_taken_is_named_at_once():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        message = rf"--coordinator is localhost:{port}: port {port} is taken by another run"
        with pytest.raises(UserError, match=message):
            processes._check_flags(f"localhost:{port}", 2, 0)
        # Only the first process serves there.
        processes._check_flags(f"localhost:{port}", 2, 1)
    processes._check_flags(f"localhost:{port}", 2, 0)
    with pytest.raises(UserError, match=r"--coordinator is localhost; give HOST:PORT"):
        processes._check_flags("localhost", 2, 1)
