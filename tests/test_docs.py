"""The documentation: its examples run, its links lead somewhere, its index is complete."""

import ast
import pathlib
import re

import jax
import pytest

import kdjax
from kdjax import config as configuration
from kdjax import losses, recipes
from kdjax.distillation import term
from kdjax.distillation.methods import LOSSES
from tools import comparison, costs, fine_tuning, networks

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METHODS, RESULTS = DOCS / "methods", DOCS / "results"
PAGES = sorted(METHODS.glob("*.md"))
# Those and all others, also of files that the site takes in.
EVERYWHERE = [
    page
    for places in ("*.md", "docs/**/*.md", "datasets/**/*.md", "launch/*.md")
    for page in ROOT.glob(places)
]
INDEX = (METHODS / "README.md").read_text()
# Whose examples a user runs; CI runs those of all pages.
EXAMPLES = ("README", "cwd", "nfd", "pfs")

# What `kdjax.losses` holds beside distillation losses.
OTHERS = {
    "ClassStatistics",
    "cross_entropy",
    "dead_channels",
    "focal",
    "hard_pixels",
    "isda_logits",
    "lovasz_softmax",
    "phi_s",
    "resize",
    "resize_labels",
    "sampling_weights",
    "upsampled_cross_entropy",
    "valid_mean",
}


def examples():
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        assert blocks or page.stem == "README", f"{page.name} has no example"
        for number, code in enumerate(blocks):
            marks = [] if page.stem in EXAMPLES else [pytest.mark.thorough]
            yield pytest.param(code, id=f"{page.stem}-{number}", marks=marks)


@pytest.mark.parametrize("code", [*examples()])
def test_examples_run_as_they_stand(code):
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def path_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", EVERYWHERE, ids=path_of)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"^(```|~~~).*?^\1|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match("https?://", target):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.is_file(), f"{page.name}: {target}"
            # The reference gets its anchors when the site is built, which looks for them too.
            known = not anchor or anchor.startswith("kdjax.") or anchor in anchors(linked)
            assert known, f"{page.name}: {target}"


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "docs/coming_from.md",
        "docs/configs.md",
        "docs/own_loss.md",
        "docs/pretraining.md",
        "docs/rare_classes.md",
    ],
)
def test_other_snippets_run(path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / path).read_text(), re.M | re.S)
    assert blocks
    for code in blocks:
        names = {"__name__": "snippet"}
        exec(compile(code, path, "exec"), names)
        if "get_config" in names:
            configuration.read(names["get_config"]())


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_reference_has_every_public_module():
    documented = set()
    for page in (DOCS / "api").glob("*.md"):
        documented |= set(re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M))
    public = {"kdjax", "kdjax.config", "kdjax.recipes"} | {
        f"kdjax.{package.parent.name}"
        for package in (ROOT / "kdjax").glob("*/__init__.py")
        if "import" in package.read_text()
    }
    assert public - {"kdjax"} <= documented
    text = (DOCS / "api" / "kdjax.md").read_text()
    for name in kdjax.__all__:
        assert f"kdjax.{name}," in text or f"| `{name}` |" in text, name


def cells():
    for page in (DOCS / "tutorials").glob("*.md"):
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        ):
            yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("code", [*cells()])
def test_tutorials_import_what_there_is(code):
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        if (module or "").split(".")[0] == "kdjax":
            exec(compile(ast.Module([node], []), "tutorial", "exec"), {})


def test_every_picture_is_shown_and_small():
    text = "".join(page.read_text() for page in PAGES)
    for picture in METHODS.glob("*.png"):
        assert f"]({picture.name})" in text
        assert picture.stat().st_size < 150_000


@pytest.mark.parametrize("name", sorted(set(losses.__all__) - OTHERS))
def test_the_index_has_every_loss_with_its_defaults(name):
    (row,) = re.findall(rf"^\| (?:`{name}`|\[`{name}`\]\([^)]+\)) \| .*20\d\d.*$", INDEX, re.M)
    *_, weight, temperature, maps, _, _ = (cell.strip() for cell in row.strip("|").split("|"))
    defaults = term(name)
    assert float(weight) == defaults["weight"]
    named = defaults["student"]
    assert maps == (named if isinstance(named, str) else ", ".join(named))
    if "temperature" in defaults:
        assert float(temperature.split()[0]) == defaults["temperature"]


def test_the_column_of_costs_is_derived_from_its_raw_results():
    assert costs.cells().keys() == {"cross_entropy", *LOSSES}
    assert costs.written(INDEX) == INDEX


def test_the_methods_by_name_are_those_of_the_code():
    section = INDEX.partition("## Methods by name")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    assert {name for name, _ in rows} >= {
        name for name, terms in recipes.METHODS.items() if len(terms) > 1
    }
    for name, said in rows:
        terms = recipes.METHODS[name].values()
        weights = [float(x) for x in re.findall(r"(?<= )[\d.]+(?= \+| \(| on| of|$)", said)]
        assert weights[: len(terms)] == [term["weight"] for term in terms], name
        assert set(re.findall(r"`(\w+)`", said)) == {term["loss"] for term in terms}, name


def test_the_table_of_networks_is_that_of_the_code():
    table = networks.committed()
    # conftest.py registers a network for the tests.
    assert table.keys() == set(networks.LISTED) - {"tiny"}
    # A few of them; `python -m tools.networks --check` compares all.
    for name in ("pspnet_r18", "deeplabv3_r18@cirkdv2", "upernet_swin_t"):
        assert table[name] == networks.described(networks.build(name))


def test_multiply_adds_are_those_of_a_convolution_and_a_product():
    def program(x, kernel, matrix):
        def convolve(x):
            return jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        return jax.jit(convolve)(x) @ matrix

    shapes = [(1, 8, 6, 3), (3, 3, 3, 5), (5, 7)]
    traced = jax.make_jaxpr(program)(*(jax.ShapeDtypeStruct(s, "float32") for s in shapes))
    assert networks.counted(traced.jaxpr) == 4 * 3 * 5 * 27 + 4 * 3 * 7 * 5


def test_a_way_of_training_on_differs_from_the_recipe_in_what_it_names(tmp_path):
    runs = {way: fine_tuning.plan(tmp_path, way, 7).options for way in fine_tuning.WAYS}
    recipe = runs["as the recipe"]
    for way, config in runs.items():
        changed = {
            f"{section}.{name}": value
            for section in ("optimizer", "student", "data", "teacher")
            for name, value in vars(getattr(config, section)).items()
            if value != getattr(getattr(recipe, section), name)
        }
        assert changed == fine_tuning.WAYS[way]
        assert (config.seed, config.data.test_split, dict(config.terms)) == (7, "", {})
    table = (ROOT / "docs/results/fine_tuning.csv").read_text()
    assert all(way in table for way in runs)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_tables_of_results_are_derived_from_their_raw_results(path):
    pages = "".join(page.read_text() for page in RESULTS.glob("*.md"))
    assert "\n".join(comparison.table(str(path))) in pages


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*_tuning.json")), ids=lambda path: path.stem)
def test_tables_of_tuning_are_derived_from_what_was_tried(path):
    pages = "".join(page.read_text() for page in RESULTS.glob("*.md"))
    assert "\n".join(comparison.tuning_table(str(path))) in pages
