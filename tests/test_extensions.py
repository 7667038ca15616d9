"""What is the user's own, beside the installed package and outside of the checkout.

Every command runs in a process of its own, in an empty folder. What is the user's is a copy of
`extension/` elsewhere: found because the config lies there, or by PYTHONPATH where there is none.
"""

import json
import re
import shutil
import sys
import time

import installed
import numpy as np
import pytest
import tiny_run
import warm
from jax import export
from PIL import Image

STEPS = 6
ADVICE = 'there is no module "my_extension" on the path; set PYTHONPATH to the folder it is in'

# A training whose data dries up after a few batches, so that it can be killed in the midst of them.
DRIED_UP = """
import itertools, runpy, sys, time
from kdjax.data.run_data import RunData
batches = RunData.train_batches
def few(self, **options):
    yield from itertools.islice(batches(self, **options), {count})
    time.sleep(1000)
RunData.train_batches = few
sys.argv.insert(1, "train")
runpy.run_module("kdjax", run_name="__main__", alter_sys=True)
"""


class House:
    """An installation, the user's folder, and the runs."""

    def __init__(self, root):
        self.root, self.theirs = root, root / "theirs"
        self._installation = installed.Installation(installed.build_wheel(root), root)
        shutil.copytree(installed.ROOT / "tests" / "extension", self.theirs)

    def config(self, student, teacher=None):
        """The flags of a student of some kind, and of the workdir that holds its teacher."""
        # The options of the teacher are those of its checkpoint.
        taught = (
            ("--config.teacher.checkpoint", teacher, "--config.teacher.name=") if teacher else ()
        )
        data = ("--config.data.data_dir", self.root / "data")
        return "--config", f"{self.theirs / 'config.py'}:{student}", *data, *taught

    def start(self, command, *arguments, devices=1, path=(), anew=False):
        """Starts a command, or Python code in its place; `anew` in an interpreter of its own."""
        code = ("-m", "kdjax", command) if command.isalpha() else ("-c", command)
        variables = {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # Threads of XLA, however many cores there are: all runs add in the same order.
            "NPROC": "1",
        }
        if anew:
            words = (sys.executable, *code, *arguments)
            return self._installation.start(*words, path=path, **variables)
        return warm.Process(
            [*code, *arguments],
            cwd=self._installation.elsewhere,
            env=self._installation.environment(path) | variables,
        )

    def run(self, command, *arguments, **options):
        """Runs a command that ends well; returns its output."""
        ((status, output, errors),) = tiny_run.finish([self.start(command, *arguments, **options)])
        assert status == 0, errors
        return output

    def fail(self, command, *arguments, **options):
        """Runs a command that ends with a mistake of the user; returns its message."""
        ((status, output, errors),) = tiny_run.finish([self.start(command, *arguments, **options)])
        assert (status, output) == (2, ""), errors
        return errors


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def compared(house):
    """A comparison: the workdir, and what was printed."""
    workdir = house.root / "compared"
    arguments = (*house.config("Nnx"), "--workdir", workdir, "--parallel=2")
    return workdir, house.run("compare", *arguments)


@pytest.fixture(scope="module")
def trained(house, compared):
    """A student of each kind, each taught by one of another: the flags of its config."""
    runs = {"Nnx": (compared[0] / "mine" / "seed0", house.config("Nnx", compared[0] / "teacher"))}
    for student, teacher in (("Plain", "Nnx"), ("Linen", "Plain")):
        flags = house.config(student, runs[teacher][0])
        house.run("train", *flags, "--workdir", house.root / student)
        runs[student] = house.root / student, flags
    return runs


@pytest.fixture(scope="module")
def photo(house):
    path = house.root / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def fingerprint(workdir):
    return json.loads((workdir / "student" / "network.json").read_text())["fingerprint"]


@pytest.mark.thorough
def test_methods_are_compared_at_once(compared):
    workdir, printed = compared
    assert "term remembered: Remembered(stage4, stage4; masked 0.5, momentum 0.5)" in printed
    rows = re.findall(r"^\| (\w[\w ]*) \|", (workdir / "results.md").read_text(), re.MULTILINE)
    assert rows == ["Method", "teacher", "plain student", "mine"]
    assert "teacher my_extension.networks:Linen (weights " in printed


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["Nnx", "Linen", "Plain"])
def test_a_run_that_was_killed_continues_bit_for_bit(house, trained, tmp_path, kind):
    whole, flags = trained[kind]
    arguments = (*flags, "--workdir", tmp_path)
    child = house.start(DRIED_UP.format(count=STEPS - 1), *arguments)
    while not (tmp_path / "checkpoints" / "4").exists():
        assert child.poll() is None, tiny_run.finish([child])
        time.sleep(0.1)
    child.kill()
    ((status, _, _),) = tiny_run.finish([child])
    assert status == -9
    assert not (tmp_path / "result.json").exists()
    assert "continues after step 4" in house.run("train", *arguments)
    assert fingerprint(tmp_path) == fingerprint(whole)
    assert tiny_run.records(tmp_path) == tiny_run.records(whole)


@pytest.mark.thorough
def test_two_processes_of_two_devices_do_what_one_device_does(house, trained, tmp_path):
    whole, flags = trained["Nnx"]
    together = (f"--coordinator=localhost:{tiny_run.free_port()}", "--num_processes=2")
    arguments = (*flags, *together, "--workdir", tmp_path)
    ended = tiny_run.finish(
        [
            # One of them has other hashes of strings.
            house.start("train", *arguments, f"--process_id={i}", devices=2, anew=bool(i))
            for i in range(2)
        ]
    )
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "mesh data 4 x fsdp 1 x space 1, 4 devices" in ended[0][1]
    tiny_run.assert_same(tmp_path, tiny_run.records(whole))


@pytest.mark.thorough
def test_a_finished_run_is_evaluated_elsewhere(house, trained):
    workdir, _ = trained["Nnx"]
    printed = house.run("evaluate", "--workdir", workdir, path=(house.theirs,))
    miou = json.loads((workdir / "result.json").read_text())["scores"]["val"]["miou"]
    assert f"val: mIoU {100 * miou:.2f} %" in printed


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["Nnx", "Linen", "Plain"])
def test_a_student_predicts_and_is_exported_elsewhere(house, trained, photo, tmp_path, kind):
    workdir, _ = trained[kind]
    labels, exported = tmp_path / "labeled", tmp_path / "exported"
    arguments = ("--workdir", workdir, "--images", photo, "--output", labels)
    house.run("predict", *arguments, path=(house.theirs,))
    arguments = ("--source", workdir, "--format=stablehlo", "--output", exported)
    house.run("export", *arguments, path=(house.theirs,))
    program = export.deserialize(bytearray((exported / "student.stablehlo").read_bytes()))
    with Image.open(photo) as image, Image.open(labels / "labels" / photo.name) as predicted:
        np.testing.assert_array_equal(program.call(np.asarray(image)[None])[0], predicted)


def test_a_step_is_planned(house, tmp_path):
    plan = tmp_path / "plan.json"
    arguments = ("--topology=local", "--num_classes=3", "--json", plan)
    printed = house.run("plan", *house.config("Linen"), *arguments)
    assert "\nmy_extension.networks:Plain teaches my_extension.networks:Linen by " in printed
    assert json.loads(plan.read_text())["devices"]


def test_a_config_whose_module_is_not_on_the_path_is_one_line(house, tmp_path):
    """It says which file names it, which module is missing, and what to do."""
    alone = shutil.copy(house.theirs / "config.py", tmp_path)
    errors = house.fail("train", "--config", f"{alone}:Nnx", "--workdir", tmp_path / "run")
    expected = rf'kdjax train: error: {alone}, line \d+: .* names the .* "my_ext.*": {ADVICE}\n'
    assert re.fullmatch(expected, errors), errors
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_run_whose_module_is_not_on_the_path_is_one_line(house, trained, photo, tmp_path):
    workdir, _ = trained["Nnx"]
    arguments = ("--workdir", workdir, "--images", photo, "--output", tmp_path / "out")
    errors = house.fail("predict", *arguments)
    assert errors == (
        f"kdjax predict: error: {workdir / 'student' / 'network.json'}: network.name names the "
        f'network "my_extension.networks:Nnx": {ADVICE}\n'
    )
