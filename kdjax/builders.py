"""Where the builders of data sets and their tables lie."""

import os
import pathlib

from kdjax import shipped
from kdjax.errors import UserError
from kdjax.suggest import closest

SEARCH_PATH = "KDJAX_DATASETS"


def builder_folders() -> list[pathlib.Path]:
    """The folder `NAME`, with its `NAME.py`, of every data set, kdjax's own last.

    They stand in the folders that the environment variable KDJAX_DATASETS names, separated as in
    PATH, and in kdjax's own.

    Raises:
      UserError: one of those folders is not there.
    """
    return [
        path.parent
        for root in _roots()
        for path in sorted(root.glob("*/*.py"))
        if path.stem == path.parent.name
    ]


def builder_folder(name: str) -> pathlib.Path:
    """The folder of one data set.

    Raises:
      UserError: there is no such data set, there are several, or as for `builder_folders`.
    """
    folders = builder_folders()
    found = [folder for folder in folders if folder.name == name]
    if not found:
        raise UserError(_unknown(name, folders))
    # Records are kept by the name of their set: those of one would be taken for the other's.
    if len(found) > 1:
        raise UserError(
            f"several data sets have the name {name!r}: {' and '.join(map(str, found))}; rename "
            f"your own, or take its folder out of {SEARCH_PATH}"
        )
    return found[0]


def _roots() -> list[pathlib.Path]:
    own, roots = shipped.folder("datasets"), []
    for named in filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep)):
        root = pathlib.Path(named).expanduser().resolve()
        if not root.is_dir():
            raise UserError(
                f"{SEARCH_PATH} names {root}, which is no folder; it names folders that hold a "
                f"folder NAME with a NAME.py for each data set, separated by {os.pathsep!r}"
            )
        if root != own and root not in roots:
            roots.append(root)
    if not own.is_dir():
        raise UserError(f"no folder of data set builders at {own}; install kdjax again")
    return [*roots, own]


def _unknown(name: str, folders: list[pathlib.Path]) -> str:
    by_root: dict[pathlib.Path, list[str]] = {}
    for folder in folders:
        by_root.setdefault(folder.parent, []).append(folder.name)
    near = closest(name, [folder.name for folder in folders])
    hint = f'did you mean "{near}"? ' if near else ""
    known = "; ".join(f"{', '.join(names)} (in {root})" for root, names in by_root.items())
    return (
        f"unknown data set {name!r}: {hint}there are: {known}; a builder of your own may be named "
        '"package.module:attribute"'
    )
