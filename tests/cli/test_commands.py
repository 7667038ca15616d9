"""The commands as a user starts them: a mistake is one line and a non-zero exit."""

import os
import pathlib
import platform
import re
import subprocess
import sys
import tomllib
from unittest import mock

import jax
import pytest
import thorough
import warm

from kdjax.cli import command
from kdjax.cli import main as door
from kdjax.utils import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--config=configs/quickstart.py", "--config.optimizer.learning_rat=1"],
            'kdjax train: error: in --config: .*Did you mean "learning_rate"',
        ),
        (
            ["train", "--config=configs/quickstart.py", "--config.terms.cwd.weight=1"],
            'kdjax train: error: in --config: .*cwd.weight: there is no "cwd"; .* file',
        ),
        (
            ["train", "--config=configs/quickstart.py", "--config.steps=many"],
            "kdjax train: error: flag --config.steps=many: .*; see --help",
        ),
        (
            ["train", "--config=configs/none.py"],
            "kdjax train: error: configs/none.py: no such config file; kdjax's own lie in ",
        ),
        (
            ["predict", "--images=x", "--output=y", "--window=4,4"],
            "kdjax predict: error: --window is for sliding windows; add --mode slide",
        ),
        (
            ["predict", "--images", "a.png", "b.png", "c.png", "--output=y"],
            'kdjax predict: error: "b.png" and 1 more belongs to no flag: .* in quotes',
        ),
        (
            ["train", "--config=configs/quickstart.py", "--config.data.flip", "False"],
            'kdjax train: error: "False" belongs to no flag: .* as --flag=false',
        ),
        (
            ["predict", "--images=x", "--output="],
            "kdjax predict: error: --output is empty; give it a value, or leave it out",
        ),
        (
            ["predict", "--images=x", "--output=y", "--opacity=nan"],
            "kdjax predict: error: --opacity is nan; it takes a finite number",
        ),
        (["compare"], "kdjax compare: error: --config is missing"),
        (["evaluate"], "kdjax evaluate: error: .*: no run here .config.json is missing"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    name, *rest = arguments
    run = warm.run("-m", "kdjax", name, *rest, f"--workdir={tmp_path / 'run'}")
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--format=onnx", "--output=x"], "--source is missing"),
        (["--source=x"], "--output and --format are missing"),
    ],
)
def test_flags_that_are_missing_are_named(given, said):
    run = warm.run("-m", "kdjax", "export", *given)
    assert (run.returncode, run.stderr) == (2, f"kdjax export: error: {said}; see --help\n")


def test_every_command_is_listed():
    helpers = {"__init__", "command", "flags", "main", "worker"}
    commands = {path.stem for path in (ROOT / "kdjax" / "cli").glob("*.py")} - helpers
    assert set(door.COMMANDS) == commands
    lines = door.overview().splitlines()
    for name in commands:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith("."), line


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_the_commands_are_listed(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdjax", *words])
    door.main()
    assert capsys.readouterr().out == f"{door.overview()}\n"


@pytest.mark.parametrize("name", thorough.after(1, list(door.COMMANDS)))
def test_the_help_of_a_command_fits_on_a_screen(name):
    """It has an example and every flag of the command, but no flag of a library."""
    run = warm.run("-m", "kdjax", name, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert any(line.startswith(f"python -m kdjax {name} ") for line in lines)
    shown = {line.split()[0] for line in lines if line.startswith("  --")}
    source = (ROOT / "kdjax" / "cli" / f"{name}.py").read_text()
    defined = {f"--{flag}" for flag in re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)}
    assert defined <= shown
    shared = {
        "ConfigFlag()": {"--config"},
        "InferenceFlags()": {"--mode", "--window", "--stride", "--scales", "--flip", "--pad_to"},
        "ModelFileFlags()": {"--classes", "--option"},
        "processes.define_flags()": {"--coordinator", "--num_processes", "--process_id"},
    }
    others = [flags for call, flags in shared.items() if call in source]
    assert shown - defined == set().union(*others)


def test_a_command_that_there_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdjax", "trian", "--config=x.py"])
    with pytest.raises(SystemExit, match="2"):
        door.main()
    said = 'kdjax: error: unknown command "trian": did you mean "train"?\n'
    assert capsys.readouterr().err == said


def test_a_command_finds_modules_of_the_working_directory_and_the_report_repeats_it(tmp_path):
    (tmp_path / "own.py").write_text("")
    code = """
import sys
from kdjax.cli import command
from kdjax.cli.main import main
from kdjax.experiment import report
sys.path.remove("")
def run(main, about, **options):
    import own
    print(main.__module__, report._command(), options)
command.run = run
main()
"""
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    run = warm.run("-c", code, "predict", "--workdir=x", cwd=tmp_path, env=variables)
    assert run.stdout == (
        "kdjax.cli.predict python -m kdjax predict --workdir=x "
        "{'extras': ('report',), 'words': 0, 'resumes': False}\n"
    ), run.stderr


def test_the_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    imported_as = {"tensorflow-cpu": "tensorflow", "pillow": "PIL"}
    for extra, modules in command.MODULES.items():
        names = [re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"][extra]]
        found = {imported_as.get(name, name.replace("-", "_")) for name in names}
        assert set(modules) == found


WITHOUT_EXTRAS = """
import runpy, sys
for module in {{*{missing!r}, *sys.modules}}:
    if module.partition(".")[0] in {missing!r}:
        sys.modules[module] = None
runpy.run_module("kdjax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("name", "words", "missing", "extra"),
    [
        ("train", ["--help"], None, "data,report"),
        ("evaluate", ["--help"], None, "data"),
        ("predict", ["--help"], None, "report"),
        # In the middle of its work.
        (
            "train",
            ["--config=configs/quickstart.py", "--workdir={}"],
            ["tensorflow"],
            "data,report",
        ),
        (
            "convert",
            ["--source={}.safetensors", "--model=x", "--num_classes=2", "--output={}"],
            ["safetensors"],
            "convert",
        ),
    ],
)
def test_a_command_without_its_extra_says_which(tmp_path, name, words, missing, extra):
    everything = [name for names in command.MODULES.values() for name in names]
    (tmp_path / "run.safetensors").write_bytes(b"not looked at")
    code = WITHOUT_EXTRAS.format(missing=missing or everything)
    words = [word.format(tmp_path / "run") for word in words]
    run = warm.run("-c", code, name, *words)
    said = rf'kdjax {name}: error: \w+ is not installed: pip install "kdjax\[{extra}\]"\n'
    assert re.fullmatch(said, run.stderr), run.stderr
    assert run.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [("ENOSPC", "No space left on device"), ("ENAMETOOLONG", "File name too long")],
)
def test_a_disk_that_takes_nothing_is_one_line(number, said):
    """The line names the file that cannot be written."""
    code = f"""
import errno, os, sys
from kdjax.cli import command
def main(argv):
    raise OSError(errno.{number}, os.strerror(errno.{number}), "runs/x/metrics.jsonl")
sys.argv = ["kdjax train"]
command.run(main)
"""
    run = warm.run("-c", code)
    assert run.stderr == f"kdjax train: error: runs/x/metrics.jsonl: {said}\n"
    assert run.returncode == 2


def test_the_name_of_the_process_holds_no_blank():
    """Slurm reads /proc/PID/stat, in which a blank would end the name too early."""
    code = """
import pathlib, sys
from kdjax.cli import command
sys.argv = ["kdjax train"]
command.run(lambda argv: print(pathlib.Path("/proc/self/comm").read_text(), end=""))
"""
    assert warm.run("-c", code).stdout == "kdjax-train\n"


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("pass", 0, r"kdjax train: in the background: OSError: of a thread\n"),
        ("raise UserError('wrong')", 2, r"kdjax train: error: wrong\n"),
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
from kdjax.cli import command
from kdjax.utils.errors import UserError, WrongValue
def fail():
    raise OSError("of a thread")
class Late:
    def __init__(self, said):
        self.said = said
    def __del__(self):
        raise ValueError(self.said)
def main(argv):
    threads = [threading.Thread(target=fail) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    Late("Event loop is closed")
    Late('OUT_OF_RANGE: Error opening "cast" driver: of a file that is cut short')
    {end}
sys.argv = ["kdjax train"]
command.run(main)
"""
    run = warm.run("-c", code)
    assert run.returncode == status
    assert re.fullmatch(said, run.stderr), run.stderr


def test_a_config_that_exits_is_a_mistake(tmp_path):
    (tmp_path / "mine.py").write_text("import exits\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    words = ("-m", "kdjax", "train", "--config=mine.py", "--workdir=run")
    run = warm.run(*words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 2
    assert run.stderr == "kdjax train: error: mine.py, line 1: SystemExit: 0\n"


def test_a_users_code_that_exits_does_not_end_the_command_as_done(tmp_path):
    (tmp_path / "own.py").write_text("import sys\n\ndef factory():\n    sys.exit(0)\n")
    code = """
import sys
from kdjax.cli import command
def main(argv):
    import own
    own.factory()
sys.argv = ["kdjax train"]
command.run(main)
"""
    run = warm.run("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 2
    assert run.stderr == (
        f"kdjax train: error: {tmp_path}/own.py, line 4: sys.exit(0) ends the command before its "
        "work is done; return, or raise an error\n"
    )


# Sends Ctrl-C at the first import of a module.
AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["absl", "jax", *thorough.after(0, ["flax", "tensorflow"])])
@pytest.mark.parametrize(
    "words", [("-m", "kdjax", "train"), ("-c", "import kdjax.cli.main as m; m.main()", "train")]
)
def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path, words, module):
    """In a new process, whose libraries are not imported yet."""
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.format(module=module))
    run = subprocess.run(
        [sys.executable, *words, "--config=quickstart.py", f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert (run.returncode, run.stderr) == (130, "\nkdjax: interrupted\n")


def test_ctrl_c_at_work_is_an_error_but_in_an_import_the_end(tmp_path):
    """A command removes its temporary files first; a library could swallow the error."""
    code = """
import os, signal, sys
from kdjax.cli import command
def main(argv):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("removed", flush=True)
    import swallows
sys.argv = ["kdjax export"]
command.run(main)
"""
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    pass\n"
    )
    run = warm.run("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (run.returncode, run.stdout) == (130, "removed\n")
    assert run.stderr == "\nkdjax: interrupted\n"


@pytest.mark.parametrize(
    "words", [("-c", "import library"), ("-m", "library", "-m", "kdjax", "train")]
)
def test_the_library_leaves_ctrl_c_alone(tmp_path, words):
    (tmp_path / "library.py").write_text(
        "import signal, kdjax\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    variables = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    subprocess.run([sys.executable, *words], check=True, cwd=tmp_path, env=variables)


def test_warnings_of_libraries_are_heard_and_their_tracebacks_held_back():
    code = """
import logging, sys
from absl import logging as absl_logging
from kdjax.cli import command
from kdjax.utils.errors import UserError, WrongValue
from kdjax.utils.log import RunLogger
def main(argv):
    RunLogger("cwd").info("100 % done")
    logging.getLogger("jax").info("not heard")
    logging.getLogger("jax").warning("no GPU")
    absl_logging.warning("a slow disk")
    try:
        raise OSError("File too large")
    except OSError:
        absl_logging.exception("Save failed")
    raise UserError("cannot write")
sys.argv = ["kdjax train"]
command.run(main)
"""
    run = warm.run("-c", code)
    assert run.stdout == "cwd: 100 % done\n"
    no_gpu, slow, error = run.stderr.splitlines()
    assert re.fullmatch(r"W.* no GPU", no_gpu)
    assert re.fullmatch(r"W.* a slow disk", slow)
    assert error == "kdjax train: error: cannot write"


def test_what_a_plugin_of_jax_complains_of_is_in_no_comparison(tmp_path):
    described = tmp_path / "broken-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Name: broken\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[jax_plugins]\nbroken = broken_plugin\n")
    plugin = "def initialize():\n    print('asked')\n    raise RuntimeError('no CUDA')\n"
    (tmp_path / "broken_plugin.py").write_text(plugin)
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = warm.run("-c", "import jax; jax.devices()", env=variables)
    assert (run.stdout, run.stderr) == ("asked\n", "")


def test_a_program_of_ones_own_says_what_it_hears():
    code = """
import logging, sys
logging.getLogger("kdjax").setLevel(logging.WARNING)
from kdjax.utils.log import RunLogger
RunLogger("cwd").info("a step")
RunLogger("cwd").warning("diverged")
"""
    run = warm.run("-c", code)
    assert (run.stdout, run.stderr) == ("cwd: diverged\n", "")


@pytest.mark.parametrize(
    ("configure", "heard"),
    [
        ("", "cwd: a step\n"),
        # In the user's own format, once.
        (
            "logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)",
            "INFO:kdjax:cwd: a step\n",
        ),
        # The root logger drops progress, so that kdjax prints it, as in some notebooks.
        ("logging.basicConfig(stream=sys.stdout, force=True)", "cwd: a step\n"),
        ("logging.getLogger('kdjax').addHandler(logging.NullHandler())", ""),
    ],
)
def test_progress_is_printed_unless_logging_is_configured(configure, heard):
    code = f"""
import logging, sys
import kdjax.experiment.train
assert not logging.getLogger("kdjax").handlers and logging.getLogger("kdjax").propagate
{configure}
from kdjax.utils.log import RunLogger
RunLogger("cwd").info("a step")
"""
    run = warm.run("-c", code)
    assert (run.stdout, run.stderr) == (heard, "")


def test_a_report_that_is_being_written_is_finished_when_asked_to_stop(tmp_path):
    code = """
import os, pathlib, signal, sys
from kdjax.cli import command
from kdjax.experiment import train as training
from kdjax.cli.train import main
def finish(run, **options):
    run.files.write_result({})
training.runs.train_run = finish
training._report = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)
command.run(main, resumes=True)
"""
    arguments = ["--config=configs/quickstart.py", f"--workdir={tmp_path}"]
    run = warm.run("-c", code, *arguments)
    said = f"-c: stopped as asked: the report {tmp_path}/report.html is written\n"
    assert (run.returncode, run.stderr) == (75, said)


def test_an_empty_variable_puts_no_compiled_programs_into_the_working_directory(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")  # so that this process's memory is left alone
    monkeypatch.setenv("NPROC", "9")  # and its variables
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    environment.set_up_jax()
    assert updates == {"jax_compilation_cache_dir": "/home/somebody/.cache/kdjax/jax"}


_CALL_THE_HOST = """
import jax, numpy as np
from kdjax.training.sharding import Placement
from kdjax.utils import environment

environment.set_up_jax()
devices = jax.devices()

@jax.jit
def step(images):
    shape = jax.ShapeDtypeStruct(images.shape[:1], np.float32)
    return jax.pure_callback(lambda x: np.asarray(x).sum((1, 2, 3)), shape, images), images.sum()

# Small arguments of a callback are copied at once.
images = np.ones((len(devices), 256, 256, 3), np.float32)
placed = Placement(devices=devices).put_batch({"image": images})["image"]
for _ in range(5):
    sums, total = step(placed)
print(len(devices), float(sums.sum()) == float(total) == images.size)
"""


@pytest.mark.thorough
def test_a_device_for_each_processor_leaves_a_thread_for_callbacks():
    env = {key: value for key, value in os.environ.items() if key != "NPROC"}
    devices = os.cpu_count() or 1
    run = warm.run("-c", _CALL_THE_HOST, env={**env, "JAX_NUM_CPU_DEVICES": str(devices)})
    assert run.stdout == f"{devices} True\n", run.stderr


@pytest.mark.thorough
def test_a_process_on_one_processor_can_call_the_host():
    """As a run of `compare --parallel` that has one processor."""
    env = {key: value for key, value in os.environ.items() if key != "NPROC"}
    code = f"import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n{_CALL_THE_HOST}"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout == "1 True\n", run.stderr


@pytest.mark.parametrize(
    ("devices", "processors", "threads"),
    [(-1, 4, None), (-1, 1, "2"), (1, 2, None), (3, 4, None), (4, 4, "5"), (16, 4, "17")],
)
def test_a_thread_is_added_if_devices_take_all(monkeypatch, devices, processors, threads):
    monkeypatch.setenv("NPROC", "")  # restored at the end
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(processors)})
    values = {"jax_num_cpu_devices": devices}
    monkeypatch.setattr(environment.jax, "config", mock.Mock(values=values))
    environment._add_a_thread()
    assert os.environ.get("NPROC") == threads


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("theirs", ["", "MALLOC_ARENA_MAX"])
def test_freed_memory_is_taken_again_without_new_pages(theirs):
    code = f"""
import ctypes, os, resource
from kdjax.utils import environment
for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
    del os.environ[name]
os.environ |= dict.fromkeys({theirs!r}.split(), "8")
environment.set_up_jax()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = ctypes.c_void_p(library.malloc(64 << 20))
    ctypes.memset(memory, 1, 64 << 20)
    library.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
new_pages()
print(new_pages())
"""
    run = warm.run("-c", code)
    assert run.returncode == 0, run.stderr
    assert (int(run.stdout) < 100) == (not theirs)
