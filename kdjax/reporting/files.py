"""Whole files, written so that a reader or a killed run never meets half of one."""

import os

from etils import epath


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to a hidden file beside `path`, then renames it to `path`."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
