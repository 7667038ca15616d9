"""The package as a wheel installs it: data sets and configs, its command, HuggingFace beside it."""

import sys
import zipfile

import installed
import pytest
from installed import ROOT, SHIPPED

LOOKED_UP = """
import pathlib, shutil
import datasets, kdjax
from kdjax.data.preparing import builder, classes
from kdjax.utils.errors import UserError
from kdjax.data.preparing.classes import known_classes

assert datasets.IS == "HuggingFace's"
package = pathlib.Path(kdjax.__file__).parent
print(*(builder.find_builder(name).__name__ for name in ("camvid", "shapes")))
print(len(classes.original_labels("cityscapes")), known_classes("ade20k"))
try:
    builder.find_builder("theirs")
except UserError as error:
    print(error)
shutil.rmtree(package / "datasets")
try:
    builder.find_builder("theirs")
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return installed.build_wheel(tmp_path_factory.mktemp("built"))


@pytest.fixture
def installation(wheel, tmp_path):
    return installed.Installation(wheel, tmp_path)


def test_a_wheel_holds_every_module_every_data_set_and_every_config(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT) for name in ("kdjax", *SHIPPED) for path in (ROOT / name).rglob("*")
    }
    expected = {
        f"kdjax/{path}" if path.parts[0] in SHIPPED else str(path)
        for path in sources
        if path.suffix in {".py", ".html", ".typed"}
        or (path.parts[0] == "datasets" and path.suffix in {".csv", ".txt", ".md"})
    }
    assert {"kdjax/py.typed", "kdjax/configs/quickstart.py"} < expected
    assert held == expected


@pytest.mark.thorough
def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    again = installed.build_wheel(tmp_path, from_sdist=True)
    held = []
    for path in (wheel, again):
        with zipfile.ZipFile(path) as archive:
            held.append({(info.filename, info.CRC) for info in archive.infolist()})
    assert held[0] == held[1]


@pytest.mark.thorough
def test_the_installed_command_and_its_configs(installation):
    site, run = installation.site, installation.run
    door = site / "bin" / "kdjax"
    listed = run(door)
    assert listed.returncode == 0, listed.stderr
    assert "\n  compare   Compares methods: " in listed.stdout
    begun = run(door, "train", "--config=quickstart.py", "--config.steps=0", "--workdir=run")
    own = site / "kdjax" / "configs" / "quickstart.py"
    assert begun.stdout == f"config: there is no quickstart.py here; using {own}\n"
    assert begun.stderr == "kdjax train: error: config.steps is 0; it must be positive\n"
    assert begun.returncode == 2
    recipe = "published.py:ade20k,segformer_b4_b0,cwd"
    begun = run(door, "train", f"--config={recipe}", "--config.steps=7", "--workdir=run")
    own = own.with_name("published.py")
    assert begun.stdout == f"config: there is no published.py here; using {own}\n"
    assert "data set ade20k has not been prepared in" in begun.stderr


@pytest.mark.thorough
def test_an_installed_package_looks_up_its_own_data_sets(installation):
    site, run = installation.site, installation.run
    theirs = site / "datasets" / "theirs"
    theirs.mkdir(parents=True)
    (site / "datasets" / "__init__.py").write_text('IS = "HuggingFace\'s"\n')
    (theirs / "theirs.py").write_text("raise AssertionError('was looked up')\n")
    done = run(sys.executable, "-c", LOOKED_UP)
    assert done.returncode == 0, done.stderr
    found, counts, unknown, gone = done.stdout.splitlines()
    assert found == "Camvid Shapes"
    assert counts == "19 150"
    assert "there are: ade20k, camvid, cityscapes" in unknown
    assert "voc2012; a builder of your own" in unknown
    assert f"no folder of data set builders at {site / 'kdjax' / 'datasets'}" in gone
