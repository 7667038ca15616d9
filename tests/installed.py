"""kdjax as its wheel installs it, in a folder of its own, and programs that run with it alone."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Folders of the repository that are inside the installed package.
SHIPPED = ("datasets", "configs")


def build_wheel(folder: pathlib.Path, *, from_sdist: bool = False) -> pathlib.Path:
    """Builds the wheel of this repository; skips the test where that cannot be done.

    Args:
      folder: for the sources and what is built.
      from_sdist: by way of the source distribution, as it is published.
    """
    missing = [name for name in ("pip", "setuptools") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"building a wheel needs {missing[0]}")
    # In a copy, since setuptools builds beside the sources and takes in what it built before.
    source, output = folder / "source", folder / "wheel"
    for name in ("kdjax", *SHIPPED):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    if from_sdist:
        build = "import setuptools.build_meta as b; b.build_sdist('sdist')"
        subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
        (source,) = (source / "sdist").glob("*.tar.gz")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", output, source)
    (built,) = output.glob("*.whl")
    return built


def _pip(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments), "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Installation:
    """A wheel installed into a folder.

    Args:
      wheel: what `build_wheel` returned.
      folder: for `site/`, what is installed, and `elsewhere/`, an empty folder to run programs in.
    """

    def __init__(self, wheel: pathlib.Path, folder: pathlib.Path):
        self.site, self.elsewhere = folder / "site", folder / "elsewhere"
        _pip("install", "--no-deps", "--no-index", "--target", self.site, wheel)
        self.elsewhere.mkdir()

    def start(
        self, *words: object, path: tuple[pathlib.Path, ...] = (), **variables: str
    ) -> subprocess.Popen[str]:
        """Starts a program in the empty folder.

        Args:
          *words: the program and its arguments.
          path: folders of modules beside the installed ones; nothing of the checkout is there.
          **variables: of its environment.
        """
        return subprocess.Popen(
            [*map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.elsewhere,
            env=self.environment(path) | variables,
        )

    def environment(self, path: tuple[pathlib.Path, ...] = ()) -> dict[str, str]:
        """The variables of a process that finds the installed package and the folders of `path`."""
        inherited = {key: value for key, value in os.environ.items() if key != "KDJAX_DATASETS"}
        return inherited | {"PYTHONPATH": os.pathsep.join(map(str, (self.site, *path)))}

    def run(self, *words: object, **options) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end, as `start` does."""
        child = self.start(*words, **options)
        output, errors = child.communicate(timeout=240)
        return subprocess.CompletedProcess(child.args, child.returncode, output, errors)
