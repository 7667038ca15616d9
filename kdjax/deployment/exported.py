"""Loads an exported student as other programs do."""

import json
import os
import pathlib
from typing import NamedTuple

from kdjax.deployment.formats import DESCRIPTION, FORMATS, PredictFn, Size, digest, first_line
from kdjax.utils.errors import UserError


class ExportedStudent(NamedTuple):
    """A file that `kdjax.export` wrote.

    Attributes:
      predict: maps 8-bit RGB images to class ids.
      size: the size of the images that it takes.
      class_names: a name per class.
    """

    predict: PredictFn
    size: Size
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ExportedStudent":
        """Loads a file by its name and by the `export.json` in the same folder.

        The digest of the file is compared first, because a runtime may crash on a damaged file.

        Raises:
          UserError: if the file or its description is missing or damaged, or if its runtime cannot
            load the file.
        """
        file = pathlib.Path(path)
        found = {chosen.file: name for name, chosen in FORMATS.items()}
        if file.name not in found or not file.exists():
            raise UserError(
                f"{file}: no exported student; name one of the files {', '.join(found)} that "
                "kdjax.export wrote"
            )
        name, beside = found[file.name], file.with_name(DESCRIPTION)
        try:
            description = json.loads(beside.read_text(encoding="utf-8"))
            written = description["exports"][name]
            _, height, width, _ = written["input_shape"]
            class_names = tuple(description["class_names"])
            same = written["sha256"] == digest(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{beside}: it must lie beside {file.name}, as kdjax.export wrote both"
            ) from error
        if not same:
            raise UserError(
                f"{file}: this is not the file that {beside} describes; export the student again"
            )
        try:
            run = FORMATS[name].read(file)
        except UserError:
            raise
        # Each runtime has its own errors, for example for a file of another version.
        except Exception as error:
            raise UserError(f"{file}: this file cannot be loaded: {first_line(error)}") from error

        return cls(run, Size(height, width), class_names)
