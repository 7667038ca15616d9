"""What the values and colours of a user's labels stand for, by the tables that people have."""

import csv
import dataclasses
import json
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.classes import Color, ColorMap, LabelMap
from kdjax.data.preparing.image_io import as_rgb, has_colors, read_label, read_text, values_of
from kdjax.data.preparing.tree import File
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError
from kdjax.utils.imports import did_you_mean

CLASS_FILES = ("classes.txt", "classes.csv", "classes.json")  # beside the images


@dataclasses.dataclass(frozen=True)
class Legend:
    """What the values and colours of labels stand for.

    Attributes:
      files: the tables that say so.
      names: of the classes, by id; none where no table names them.
      palette: RGB of those that have a colour there, by name.
      of_values: class ids, and 255, of values.
      of_colors: of colours; None where no table has any.
      all_colored: whether what grey labels hold are colours too.
      ignores: whether a table or an option says what is ignored.
    """

    files: list[File]
    names: list[str]
    palette: dict[str, Color]
    of_values: LabelMap
    of_colors: ColorMap | None
    all_colored: bool
    ignores: bool

    def __call__(self, file: File) -> UInt8[np.ndarray, "H W"]:
        """Class ids 0..K-1, and 255 where ignored, of the label in a file.

        Raises:
          DamagedFile: the file cannot be decoded to its end.
          UserError: it holds values or colours that no table knows, or it is a JPEG.
        """
        label = read_label(file)
        if self.of_colors and (self.all_colored or has_colors(label)):
            return self.of_colors(np.asarray(as_rgb(label, str(file))), file)
        advice = (
            "say which class each stands for by --colors FILE, a CSV with the heading name,r,g,b"
        )
        return self.of_values(values_of(label, file, advice=advice), file)


def read_legend(
    source: pathlib.Path,
    *,
    colors: str | None = None,
    ignore: Sequence[int | str] = (),
    ignore_unknown: bool = False,
) -> Legend:
    """Reads the table of classes in `source`, if there is one, and that of the colours.

    Args:
      source: the folder of the images and labels.
      colors: a table of the colours of classes, which all labels then hold; without it those that
        are not grey do, where the table of classes has colours.
      ignore: what becomes 255 and no class: values, names of classes, colours as "#000000".
      ignore_unknown: whether values and colours that stand for no class become 255 too.

    Raises:
      UserError: a table cannot be read, the two do not fit, or `ignore` names what is not there.
    """
    own = [path for name in CLASS_FILES if (path := source / name).is_file()]
    if len(own) > 1:
        raise UserError(f"{source} has {own[0].name} and {own[1].name}; keep one of them")
    if colors and not pathlib.Path(colors).is_file():
        raise UserError(f"there is no file {colors}; --colors names a table of colours")
    paths = [*own, *([pathlib.Path(colors)] if colors else [])]
    tables = [read_table(path) for path in paths]
    by_value = tables[0] if own else []
    by_color = tables[-1] if colors else [row for row in by_value if row.color]
    table_rows = [row for table in tables for row in table]
    ignored = _parse_ignored(ignore, [row.name for row in table_rows])
    if colors and ignored.values:
        raise UserError(
            f"--ignore {min(ignored.values)}: with --colors labels hold colours and no values; "
            "name a class of the table, or a colour, as --ignore '#000000'"
        )
    names = list(dict.fromkeys(row.name for row in by_value or by_color if row not in ignored))
    if tables and not 1 <= len(names) <= IGNORE_LABEL:
        raise UserError(
            f"{paths[0]} names {len(names)} classes; it has to name 1 to {IGNORE_LABEL}"
        )
    ids = {name: number for number, name in enumerate(names)}

    def id_of(row: Row) -> int:
        if row in ignored:
            return IGNORE_LABEL
        if row.name not in ids:
            raise UserError(
                f"{colors} names {row.name!r}, which is no class of {own[0]}; name it there, or "
                f"leave it out by --ignore '{row.name}'"
            )
        return ids[row.name]

    values = {row.label: id_of(row) for row in by_value} or {i: i for i in range(IGNORE_LABEL)}
    colored = {row.color: id_of(row) for row in by_color if row.color}
    if lacking := [row.name for row in by_color if not row.color]:
        raise UserError(f"{colors} has no colour for {lacking[0]}; give one, as name,r,g,b")
    allowed = f"those of {paths[0].name}" if own else "0..254"
    if list(values) == list(range(len(by_value))):
        allowed = f"0..{len(by_value) - 1} ({paths[0].name} names {len(by_value)})"
    return Legend(
        files=[File.on_disk(path) for path in paths],
        names=names,
        palette={row.name: row.color for row in reversed([*by_value, *by_color]) if row.color},
        of_values=LabelMap(
            dict.fromkeys(range(256) if ignore_unknown else [IGNORE_LABEL], IGNORE_LABEL)
            | {value: number for value, number in values.items() if 0 <= value <= 255}
            | dict.fromkeys(ignored.values, IGNORE_LABEL),
            f"{allowed}, {IGNORE_LABEL} and the values of --ignore; --ignore_unknown ignores all "
            "others",
        ),
        of_colors=ColorMap(
            colored | dict.fromkeys(ignored.colors, IGNORE_LABEL),
            names,
            f"those of {paths[-1].name}; --ignore '#rrggbb' ignores another one, --ignore_unknown "
            "all others",
            ignore_unknown=ignore_unknown,
        )
        if colored
        else None,
        all_colored=colors is not None,
        ignores=bool(ignore) or ignore_unknown or any(row in ignored for row in table_rows),
    )


class Row(NamedTuple):
    """What a row of a table says.

    Attributes:
      name: of the class; empty where the row stands for what is ignored.
      label: its value in labels; in a table without values, its place.
      color: its RGB, where it has one.
    """

    name: str
    label: int
    color: Color | None


@dataclasses.dataclass(frozen=True)
class _Ignored:
    values: set[int]
    names: set[str]
    colors: set[Color]

    def __contains__(self, row: Row) -> bool:
        return (
            not row.name
            or row.name in self.names
            or row.label in self.values
            or row.color in self.colors
        )


def _parse_ignored(ignore: Sequence[int | str], names: Sequence[str]) -> _Ignored:
    """What `ignore` says, where the tables have `names`."""
    ignored = _Ignored(set(), set(), set())
    for what in ignore:
        if isinstance(what, int):
            if not 0 <= what <= 255:
                raise UserError(f"--ignore {what} is no label value: those are 0..255")
            ignored.values.add(what)
        elif what in names:
            ignored.names.add(what)
        elif what.startswith("#"):
            try:
                ignored.colors.add(parse_color(what))
            except ValueError as error:
                raise UserError(f"--ignore {what}: {error}") from error
        else:
            raise UserError(
                f"--ignore {what} is no label value, no colour and no class: "
                f"{did_you_mean(what, filter(None, names))}"
            )
    return ignored


# What people's tools call these, in lower case.
_NAMES = ("name", "class", "label")
_LABELS = ("id", "value", "pixel value", "label")
_CHANNELS = ("red", "r", "green", "g", "blue", "b")
_COLORS = ("color", "colour", "rgb")
# Characters that a class name may not hold: they would move the cursor of a terminal, or cannot be
# encoded. Controls, halves of characters, breaks of lines and of paragraphs.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_MAX_SHOWN = 60  # characters
_LISTS = ("categories", "classes", "labels", "names")
# The lines of label_colors.txt, as CamVid has it, and of CVAT's labelmap.txt.
_COLORED_LINES = (
    re.compile(r"(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+(?P<name>.+)"),
    re.compile(r"(?P<name>[^:]+):(?P<red>\d+),(?P<green>\d+),(?P<blue>\d+)(:.*)?"),
)


def read_table(path: pathlib.Path) -> list[Row]:
    """Reads a user's table of classes, or of the colours of classes.

    The file is a text of names, one a line; comma-separated values with a heading, as
    `value,name,red,green,blue` or `name,r,g,b`; or JSON: a list of names or of objects, an object
    of names by value or of colours by name, or one that holds such a list.

    Raises:
      UserError: the file is none of these; a row names no class, repeats another row, or has a
        value or a colour that is not of whole numbers, or a name that cannot be printed.
    """
    text = read_text(File.on_disk(path))
    try:
        match path.suffix.lower():
            case ".json":
                entries = _json_entries(json.loads(text))
            case ".csv":
                entries = _csv_entries(text)
            case _:
                entries = _text_entries(text)
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of classes: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for a table of classes") from error
    kind = "entry" if path.suffix.lower() in (".json", ".csv") else "line"
    rows: list[tuple[str, int | None, Color | None]] = []
    for number, entry in enumerate(entries, start=1):
        try:
            rows.append(_class_row(entry))
        except (ValueError, TypeError) as error:
            raise UserError(f"{kind} {number} of {path}: {error}") from error
    labels = [label for _, label, _ in rows]
    unique = {
        "value": labels,
        "colour": [color for _, _, color in rows],
        # Several values or colours may stand for one class.
        "name": [name if label is None and not color else None for name, label, color in rows],
    }
    for what, values in unique.items():
        for number, value in enumerate(values, start=1):
            if value is not None and value in values[: number - 1]:
                raise UserError(f"{kind} {number} of {path} repeats the {what} {value}")
    if None in labels and any(label is not None for label in labels):
        number = labels.index(None) + 1
        raise UserError(f"{kind} {number} of {path} has no value, as others have; give it one")
    return [
        Row(name, number if label is None else label, color)
        for number, (name, label, color) in enumerate(rows)
    ]


def _text_entries(text: str) -> list[dict[str, Any]]:
    lines = text.rstrip().splitlines()
    uncommented = [line.strip() for line in lines if not line.startswith("#")]
    for form in _COLORED_LINES:
        found = [match.groupdict() for match in map(form.fullmatch, uncommented) if match]
        if found and len(found) == len(uncommented):
            return found
    return [{"name": line} for line in lines]


def _csv_entries(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    heading = lines[0] if lines else ""
    reader = csv.DictReader(lines, delimiter=max(",;\t", key=heading.count))
    columns = reader.fieldnames or ()
    if lines and not any(column.strip().lower() in _NAMES for column in columns):
        raise ValueError(
            "the first line must name the columns, as value,name or name,r,g,b; it is "
            f"{_shown(heading)}"
        )
    return list(reader)


def _json_entries(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, dict) and "palette" in content:
        pairs = zip(content.get("classes", ()), content["palette"], strict=True)
        return [{"name": name, "color": color} for name, color in pairs]
    if isinstance(content, dict):
        lists = [content[key] for key in _LISTS if isinstance(content.get(key), list)]
        content = lists[0] if lists else [_json_entry(*item) for item in content.items()]
    return [entry if isinstance(entry, dict) else {"name": entry} for entry in content]


def _json_entry(key: str, value: Any) -> dict[str, Any]:
    """One of an object that has classes by value or by name."""
    if isinstance(value, dict):
        return {"id" if key.isdecimal() else "name": key, **value}
    if isinstance(value, str) and key.isdecimal():
        return {"id": key, "name": value}
    return {"name": key, "id" if isinstance(value, int) else "color": value}


def _class_row(entry: Mapping[str, Any]) -> tuple[str, int | None, Color | None]:
    """Name, value and colour."""
    fields = {
        str(key).strip().lower(): value.strip() if isinstance(value, str) else value
        for key, value in entry.items()
    }
    name_key = next((key for key in _NAMES if key in fields), None)
    if name_key is None:
        raise ValueError(f"there is no name among {_shown(', '.join(fields))}")
    name = fields.pop(name_key)
    labels = [fields[key] for key in _LABELS if fields.get(key) not in (None, "")]
    channels = [fields[key] for key in _CHANNELS if fields.get(key) not in (None, "")]
    colors = [fields[key] for key in _COLORS if fields.get(key)]
    color = parse_color(channels or colors[0]) if channels or colors else None
    if not isinstance(name, str) or not (name or labels or color):
        raise ValueError(f"{_shown(name)} is no name of a class")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise ValueError(
            f"the name {_shown(name)} holds a line break, a control character, or half a "
            "character; use printable text"
        )
    return name, _whole(labels[0], "value") if labels else None, color


def _whole(value: Any, what: str) -> int:
    """Returns a whole number from JSON, or from a text of digits.

    Raises:
      ValueError: it is anything else; `what` says what it was to be.
    """
    if not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        raise ValueError(f"the {what} {_shown(value)} is not a whole number, as 7 is")
    return int(value)


def _shown(value: Any) -> str:
    """Returns a value as a message shows it: short, and safe to print in a terminal."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def parse_color(value: str | Sequence[int | str]) -> Color:
    """RGB of `#804080`, `128, 64, 128` or three numbers.

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    numbers = re.findall(r"-?[\d.]+", value) if isinstance(value, str) else value
    if not isinstance(numbers, Sequence) or len(numbers) != 3:
        raise ValueError(f"{_shown(value)} is no colour: give three numbers 0..255, or #rrggbb")
    red, green, blue = (_whole(number, "colour channel") for number in numbers)
    if not all(0 <= number <= 255 for number in (red, green, blue)):
        raise ValueError(f"{_shown(value)} is no colour: give three numbers 0..255, or #rrggbb")
    return red, green, blue
