"""The package as a wheel installs it: with the data sets, and beside HuggingFace's `datasets`."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

LOOKED_UP = """
import pathlib, shutil
import datasets, kdjax
from kdjax.data import builder_lookup, classes
from kdjax.errors import UserError
from kdjax.planning.program import known_classes

assert datasets.IS == "HuggingFace's"
package = pathlib.Path(kdjax.__file__).parent
print(*(builder_lookup.find_builder(name).__name__ for name in ("camvid", "shapes")))
print(len(classes.original_labels("cityscapes")), known_classes("ade20k"))
try:
    builder_lookup.find_builder("theirs")
except UserError as error:
    print(error)
shutil.rmtree(package / "datasets")
try:
    builder_lookup.find_builder("theirs")
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    missing = [name for name in ("pip", "setuptools") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"building a wheel needs {missing[0]}")
    # In a copy, since setuptools builds beside the sources and takes in what it built before.
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("kdjax", "datasets"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", output, source)
    (built,) = output.glob("*.whl")
    return built


def pip(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments), "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_every_module_and_every_data_set(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT)
        for name in ("kdjax", "datasets")
        for path in (ROOT / name).rglob("*")
    }
    expected = {
        f"kdjax/{path}" if path.parts[0] == "datasets" else str(path)
        for path in sources
        if path.suffix in {".py", ".html"}
        or (path.parts[0] == "datasets" and path.suffix in {".csv", ".txt", ".md"})
    }
    assert held == expected


def test_an_installed_package_looks_up_its_own_data_sets(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    elsewhere.mkdir()
    theirs = site / "datasets" / "theirs"
    theirs.mkdir(parents=True)
    (site / "datasets" / "__init__.py").write_text('IS = "HuggingFace\'s"\n')
    (theirs / "theirs.py").write_text("raise AssertionError('was looked up')\n")
    variables = {key: value for key, value in os.environ.items() if key != "KDJAX_DATASETS"}
    done = subprocess.run(
        [sys.executable, "-c", LOOKED_UP],
        capture_output=True,
        text=True,
        check=False,
        cwd=elsewhere,
        env={**variables, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    found, counts, unknown, gone = done.stdout.splitlines()
    assert found == "Camvid Shapes"
    assert counts == "19 150"
    assert "there are: ade20k, camvid, cityscapes" in unknown
    assert f"no folder of data set builders at {site / 'kdjax' / 'datasets'}" in gone
