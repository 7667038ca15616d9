"""Hooks of the site (mkdocs.yml): formulas, and pages from files outside docs/.

Formulas become MathML when the site is built, so that no script and no font is needed to read them.
A link from docs/ to another file of the repository, as an example or a data set's page, would lead
nowhere on the site: that file becomes a page of its own, below `project/`. Tutorials can be taken
away as notebooks.
"""

import ast
import html
import os
import pathlib
import re
from collections.abc import Iterable

import nbformat
import notebooks
from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocstrings import Inventory

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = "docs"
PROJECT = "project"
TUTORIALS = "tutorials/"
NOT_IN_NAV = InclusionLevel.NOT_IN_NAV

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_config(config: MkDocsConfig) -> None:
    """Lists the pages of a folder where the navigation names it with a slash at its end."""
    for section in config.nav or []:
        for title, entry in section.items():
            if isinstance(entry, str) and entry.endswith("/"):
                pages = sorted((ROOT / DOCS / entry).glob("*.md"), key=_index_first)
                section[title] = [f"{entry}{page.name}" for page in pages]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the files outside docs/ that a page links to, and those that these link to."""
    pages = {f"{DOCS}/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    waiting = [target for path, text in pages.items() for target in _linked(path, text)]
    added: set[str] = set()
    while waiting:
        target = waiting.pop()
        if target in added or target.startswith(f"{DOCS}/"):
            continue
        added.add(target)
        text = (ROOT / target).read_text()
        if target.endswith(".md"):
            waiting += _linked(target, text)
        else:
            kind = pathlib.Path(target).suffix.removeprefix(".")
            text = f"# {pathlib.Path(target).name}\n\n`{target}`\n\n````{kind}\n{text}````\n"
        files.append(File.generated(config, _page(target), content=text, inclusion=NOT_IN_NAV))
    for page in notebooks.PAGES:
        made = nbformat.writes(notebooks.notebook(page))
        files.append(File.generated(config, f"{TUTORIALS}{page.stem}.ipynb", content=made))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to where their targets are on the site."""
    here = page.file.src_uri
    inside = here.removeprefix(f"{PROJECT}/").removesuffix(".page.md")
    source = inside if here.startswith(f"{PROJECT}/") else f"{DOCS}/{here}"

    def led(link: re.Match[str]) -> str:
        target = _target(source, link[1])
        if target is None:
            return link[0]
        place = _page(target)
        return os.path.relpath(place, os.path.dirname(here)) + (link[2] or "")

    markdown = _LINK.sub(led, markdown)
    if here.startswith(TUTORIALS) and not page.is_index:
        button = f"[Download as a notebook]({here.removeprefix(TUTORIALS)[:-2]}ipynb)"
        markdown = markdown.replace("\n", f"\n\n{button}{{ .md-button }}\n", 1)
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas to MathML."""
    return _FORMULA.sub(_mathml, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Requires all that rooms export to be in the reference."""
    with open(os.path.join(config.site_dir, "objects.inv"), "rb") as file:
        documented = Inventory.parse_sphinx(file)
    for module in (ROOT / "kdjax").glob("*/__init__.py"):
        for statement in ast.parse(module.read_text()).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
                room = f"kdjax.{module.parent.name}"
                public = {f"{room}.{name}" for name in ast.literal_eval(statement.value)}
                if missing := sorted(public - documented.keys()):
                    raise PluginError(f"not in the reference: {', '.join(missing)}")


def _mathml(formula: re.Match[str]) -> str:
    display = "inline" if formula[2] == "(" else "block"
    return converter.convert(html.unescape(formula[3]).strip(), display=display)


def _index_first(page: pathlib.Path) -> tuple[bool, str]:
    return page.name not in {"README.md", "index.md"}, page.name


def _linked(source: str, text: str) -> Iterable[str]:
    targets = (_target(source, link[1]) for link in _LINK.finditer(text))
    return [target for target in targets if target is not None]


def _target(source: str, link: str) -> str | None:
    """The file of the repository that a link in `source` leads to; None where there is none."""
    path = os.path.normpath(os.path.join(os.path.dirname(source), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _page(target: str) -> str:
    """Where a file of the repository is among the site's sources."""
    if target.startswith(f"{DOCS}/"):
        return target.removeprefix(f"{DOCS}/")
    return f"{PROJECT}/{target}" if target.endswith(".md") else f"{PROJECT}/{target}.page.md"
