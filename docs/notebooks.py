"""Executes the tutorials, and makes notebooks of them.

    python docs/notebooks.py photos compare     # writes what they print and draw into their pages
    python docs/notebooks.py --check own_loop   # only says whether they run

A tutorial is a page of Markdown whose blocks of `python` and `bash` are the cells of a notebook;
what a cell printed and drew stands behind it, between two comments. So a page reads everywhere as
it is, a change of text is a line of a diff, and the notebook, outputs and all, is made of the page
when the site is built. A cell whose first line names a file, `# my_networks.py`, is that file.
"""

import argparse
import base64
import io
import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

TUTORIALS = pathlib.Path(__file__).resolve().parent / "tutorials"
BEGIN, END = "<!-- output -->", "<!-- end of output -->"
# But for the page that lists them.
PAGES = sorted(page for page in TUTORIALS.glob("*.md") if page.stem != "README")
SHOWN = 24  # lines of what a cell prints: the first three and the last

_CELL = re.compile(
    rf"^```(python|bash)\n(.*?)^```\n(?:\n{BEGIN}\n(.*?){END}\n)?", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# (\w+\.py)\n")
_PICTURE = re.compile(r"!\[\]\((.+?)\)")
_TEXT = re.compile(r"```text\n(.*?)```", re.DOTALL)


def notebook(page: pathlib.Path) -> Any:
    """The notebook of a tutorial, with the outputs that stand in its page."""
    text = page.read_text()
    cells, place = [], 0
    for found in _CELL.finditer(text):
        cells += _prose(text[place : found.start()])
        cell = nbformat.v4.new_code_cell(_source(found[1], found[2]))
        cell.outputs = _outputs(found[3] or "", page.parent)
        cells.append(cell)
        place = found.end()
    cells += _prose(text[place:])
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def execute(page: pathlib.Path, *, check: bool) -> None:
    """Runs the cells of a tutorial in an empty folder and writes what they say into its page."""
    made = notebook(page)
    # Where kdjax is not installed, it is that of this checkout; `python` is the one that runs this.
    for name, first in {
        "PYTHONPATH": TUTORIALS.parent.parent,
        "PATH": pathlib.Path(sys.executable).parent,
    }.items():
        os.environ[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name, "")]))
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(made, timeout=None, resources={"metadata": {"path": folder}}).execute()
    if check:
        return
    pictures = page.with_suffix("")
    shutil.rmtree(pictures, ignore_errors=True)
    outputs = iter([cell.outputs for cell in made.cells if cell.cell_type == "code"])

    def with_output(found: re.Match[str]) -> str:
        said = _written(next(outputs), pictures).replace(f"{folder}/", "")
        cell = f"```{found[1]}\n{found[2]}```\n"
        return f"{cell}\n{BEGIN}\n{said}\n{END}\n" if said else cell

    page.write_text(_CELL.sub(with_output, page.read_text()))


def _prose(text: str) -> list[Any]:
    return [nbformat.v4.new_markdown_cell(text.strip())] if text.strip() else []


def _source(language: str, code: str) -> str:
    if language == "bash":
        return f"%%bash\n{code.strip()}"
    file = _FILE.match(code)
    return f"%%writefile {file[1]}\n{code.strip()}" if file else code.strip()


def _outputs(said: str, folder: pathlib.Path) -> list[Any]:
    made = [nbformat.v4.new_output("stream", text=text) for text in _TEXT.findall(said)]
    for path in _PICTURE.findall(said):
        data = {"image/png": base64.b64encode((folder / path).read_bytes()).decode()}
        made.append(nbformat.v4.new_output("display_data", data))
    return made


def _written(outputs: list[Any], folder: pathlib.Path) -> str:
    """What a cell printed, and its pictures as files."""
    text, parts = "", []
    for output in outputs:
        data = output.get("data", {})
        if output.output_type == "stream" and output.name == "stdout":
            text += output.text
        elif "image/png" in data:
            folder.mkdir(exist_ok=True)
            path = folder / f"{len([*folder.iterdir()]) + 1}.png"
            picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            picture.convert("RGB").quantize(128).save(path, optimize=True)
            parts.append(f"![]({folder.name}/{path.name})\n")
        elif output.output_type == "execute_result":
            text += data["text/plain"] + "\n"
    # Of a line that was written over, what was left in the end; and no bars.
    lines = [line.rpartition("\r")[2] for line in text.rstrip().split("\n")]
    lines = [line for line in lines if not re.match(r"Writing |\s+$|.*\d%\|", line)]
    if len(lines) > SHOWN:
        lines = [*lines[:3], f"[... {len(lines) - SHOWN} lines ...]", *lines[3 - SHOWN :]]
    if any(lines):
        parts.insert(0, "\n".join(["```text", *lines, "```", ""]))
    return "\n".join(parts)


def main() -> None:
    """Executes the tutorials that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [page.stem for page in PAGES]
    parser.add_argument("names", nargs="+", choices=names, metavar=f"{{{','.join(names)}}}")
    parser.add_argument("--check", action="store_true", help="write nothing")
    flags = parser.parse_args()
    for name in flags.names:
        execute(TUTORIALS / f"{name}.md", check=flags.check)


if __name__ == "__main__":
    main()
