"""Which package may import which."""

import ast
import inspect
import os
import pathlib
import subprocess
import sys
import typing

import pytest

from kdjax import distillation, losses
from kdjax.distillation.methods import LOSSES

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What a package may import in addition to itself and `utils`. The order is that of CONTRIBUTING.md.
CORE = {"losses", "distillation", "models", "training"}
EVALUATION = {*CORE, "data", "reporting", "evaluation"}
RUNNING = {*EVALUATION, "config", "interop", "deployment", "teachers", "experiment"}
PACKAGES = {
    "utils": set(),
    "losses": set(),
    "distillation": {"losses"},
    "models": {"losses", "distillation"},
    "training": {"losses", "distillation", "models"},
    "data": set(),
    "config": {*CORE, "data"},
    "reporting": set(),
    "evaluation": EVALUATION - {"evaluation"},
    "interop": {"distillation", "models"},
    "deployment": {"distillation", "models", "evaluation"},
    "teachers": {*CORE, "config", "data", "evaluation"},
    "experiment": RUNNING - {"experiment"},
    "planning": {*CORE, "config", "data", "experiment"},
    "comparison": RUNNING - {"deployment"},
    "cli": {*RUNNING, "planning", "comparison"},
}


def imported_packages(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("kdjax.")}


def test_a_package_imports_only_those_before_it():
    before = set()
    for package, below in PACKAGES.items():
        assert below <= before, f"{package} stands before what it imports"
        before.add(package)
        paths = [*(ROOT / "kdjax" / package).rglob("*.py"), ROOT / "kdjax" / f"{package}.py"]
        for path in filter(pathlib.Path.exists, paths):
            wrong = (imported_packages(path) & PACKAGES.keys()) - {"utils", package, *below}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_package_is_in_the_list():
    found = {path.parent.name for path in (ROOT / "kdjax").glob("*/__init__.py")}
    assert found <= PACKAGES.keys()


def test_every_module_of_a_method_is_in_the_list_of_losses():
    package = ROOT / "kdjax" / "distillation" / "methods"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert modules == {path.rpartition(":")[0].rpartition(".")[2] for path in LOSSES.values()}


def test_loading_knows_nothing_of_preparing():
    for path in (ROOT / "kdjax" / "data" / "loading").glob("*.py"):
        assert "kdjax.data.preparing" not in path.read_text(), path.name


def loaded_by(*statements):
    """The modules that are loaded after each of some statements, in one process."""
    said = "print(' '.join(sys.modules))"
    code = "\n".join(["import sys", *(f"{statement}; {said}" for statement in statements)])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return [set(line.split()) for line in run.stdout.splitlines()]


CORE_PARTS = ("training.loop", "training.checkpoints", "evaluation", "interop", "deployment")
FEEDING = ("data.loading.sources", "data.loading.sampling", "experiment.input_pipeline")


@pytest.fixture(scope="module")
def loaded():
    """What the losses load, the core besides, and with these what feeds examples in memory."""
    parts = (("losses",), CORE_PARTS, FEEDING)
    return loaded_by(*(f"import {', '.join(f'kdjax.{name}' for name in part)}" for part in parts))


def test_losses_need_jax_alone(loaded):
    loaded, *_ = loaded
    assert not loaded & {"flax", "optax", "orbax", "ml_collections", "tensorflow"}
    assert {name for name in loaded if name.startswith("kdjax.")} <= {
        name for name in loaded if name.startswith("kdjax.losses")
    }


def test_the_package_and_its_list_of_commands_need_nothing():
    package, commands = loaded_by("import kdjax", "import kdjax.cli.main as door; door.overview()")
    assert not package & {"jax", "numpy", "kdjax.config"}
    assert not commands & {"absl", "jax", "numpy"}


@pytest.mark.parametrize(
    "value",
    [getattr(package, name) for package in (losses, distillation) for name in package.__all__],
    ids=lambda value: value.__name__,
)
def test_the_hints_of_what_is_public_resolve(value):
    methods = vars(value).values() if inspect.isclass(value) else ()
    functions = [getattr(method, "__func__", method) for method in methods]
    for hinted in (value, *filter(inspect.isfunction, functions)):
        typing.get_type_hints(hinted)


def test_the_core_needs_neither_tensorflow_nor_torch_nor_the_report(loaded):
    _, loaded, _ = loaded
    assert not loaded & {
        *("tensorflow", "torch", "tensorflow_datasets", "tensorboardX", "matplotlib"),
        "safetensors",
    }


def test_examples_in_memory_need_no_tensorflow(loaded):
    *_, loaded = loaded
    assert not loaded & {"tensorflow", "tensorflow_datasets", "array_record"}


def test_datasets_is_no_package():
    # It would hide another well-known `datasets` from everything that runs from the root.
    assert not list((ROOT / "datasets").rglob("__init__.py"))


@pytest.mark.thorough
def test_flags_for_jax_alone_do_not_end_tensorflow():
    code = (
        "import os; from kdjax.data._tensorflow import tf; "
        "tf.function(lambda: tf.zeros([2]) + 1, jit_compile=True)(); print(os.environ['XLA_FLAGS'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_no_flag_of_tensorflow=1"},
    )
    assert run.stdout.strip() == "--xla_no_flag_of_tensorflow=1", run.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("body", ["time.sleep(200)", "os.abort()"])
def test_a_test_that_hangs_or_crashes_ends_as_a_failure(tmp_path, body):
    """It does so with the options of the project, and its stack is printed."""
    (tmp_path / "test_bad.py").write_text(f"import os, time\ndef test_bad():\n    {body}\n")
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    options = {"pythonpath": "", "testpaths": tmp_path, "faulthandler_timeout": 3}
    command = [sys.executable, "-m", "pytest", "-n", "2", "-c", ROOT / "pyproject.toml"]
    run = subprocess.run(
        [
            *command,
            *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        ],
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, run.stdout
    assert "crashed while running" in run.stdout
    assert "in test_bad" in run.stderr
