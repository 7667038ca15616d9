"""The documentation: its examples run, its links lead somewhere, its index is complete."""

import pathlib
import re

import pytest

from kdjax import losses
from kdjax.distillation.catalogue import LOSSES

METHODS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "methods"
PAGES = sorted(METHODS.glob("*.md"))
INDEX = (METHODS / "README.md").read_text()

# What `kdjax.losses` holds beside distillation losses.
OTHERS = {
    "ClassStatistics",
    "cross_entropy",
    "dead_channels",
    "isda_logits",
    "upsampled_cross_entropy",
    "valid_mean",
}


def examples():
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        assert blocks or page.stem == "README", f"{page.name} has no example"
        for number, code in enumerate(blocks):
            yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("code", [*examples()])
def test_examples_run_as_they_stand(code):
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = METHODS / path if path else page
            assert linked.is_file(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


def test_every_picture_is_shown_and_small():
    text = "".join(page.read_text() for page in PAGES)
    for picture in METHODS.glob("*.png"):
        assert f"]({picture.name})" in text
        assert picture.stat().st_size < 150_000


@pytest.mark.parametrize("name", sorted(set(losses.__all__) - OTHERS))
def test_the_index_has_every_loss_with_its_defaults(name):
    (row,) = re.findall(rf"^\| (?:`{name}`|\[`{name}`\]\([^)]+\)) \| .*20\d\d.*$", INDEX, re.M)
    *_, weight, temperature, maps, _ = (cell.strip() for cell in row.strip("|").split("|"))
    defaults = LOSSES[name].defaults
    assert float(weight) == defaults["weight"]
    assert maps == defaults.get("student", "logits")
    if "temperature" in defaults:
        assert float(temperature.split()[0]) == defaults["temperature"]
