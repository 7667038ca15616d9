"""Reads a user's labels by the class and color tables in the same folder."""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.classes import Color, ColorMap, LabelMap
from kdjax.data.preparing.image_io import as_rgb, read_label, read_text, values_of
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError
from kdjax.utils.imports import did_you_mean

CLASS_FILES = ("classes.txt", "classes.csv", "classes.json")  # in the source folder
_GRAY_MODES = ("L", "LA", "1", "I", "I;16")


@dataclasses.dataclass(frozen=True)
class LabelReader:
    """Reads label files as class ids.

    Attributes:
      names: the class names by id; empty if no table names them.
      palette: the RGB color of each class that has one in a table, by name.
      values: maps label values to class ids.
      colors: maps label colors to class ids; None if no table has colors.
      all_colored: whether gray labels hold colors too.
      ignores: whether a table or an option defines what is ignored.
    """

    names: list[str]
    palette: dict[str, Color]
    values: LabelMap
    colors: ColorMap | None
    all_colored: bool
    ignores: bool

    def __call__(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Returns the class ids 0..K-1, and 255 for ignored pixels, of the label in a file."""
        label = read_label(path)
        if self.colors and (self.all_colored or label.mode not in _GRAY_MODES):
            return self.colors(np.asarray(as_rgb(label, str(path))), path)
        advice = "name the class of each by --colors FILE, a CSV with the heading name,r,g,b"
        return self.values(values_of(label, path, advice=advice), path)


def label_reader(
    source: pathlib.Path,
    *,
    colors: str | None = None,
    ignore: Sequence[int | str] = (),
    ignore_unknown: bool = False,
) -> LabelReader:
    """Reads the class table in `source`, if there is one, and the color table.

    Args:
      source: the folder with the images and labels.
      colors: a table of class colors, for labels that all hold colors. Without it, labels hold
        colors if they are not gray and the class table has colors.
      ignore: what becomes 255: label values, class names, and colors such as "#000000".
      ignore_unknown: whether unknown values and colors become 255 too.

    Raises:
      UserError: if a table cannot be read, the two contradict each other, or `ignore` names
        something unknown.
    """
    own = [path for name in CLASS_FILES if (path := source / name).is_file()]
    if len(own) > 1:
        raise UserError(f"{source} has {own[0].name} and {own[1].name}; keep one of them")
    if colors and not pathlib.Path(colors).is_file():
        raise UserError(f"there is no file {colors}; --colors names a table of colors")
    paths = [*own, *([pathlib.Path(colors)] if colors else [])]
    tables = [read_class_table(path) for path in paths]
    by_value = tables[0] if own else []
    by_color = tables[-1] if colors else [row for row in by_value if row.color]
    rows = [row for table in tables for row in table]
    ignored = _parse_ignored(ignore, {row.name for row in rows})
    ignored_values = [entry for entry in ignored if isinstance(entry, int)]
    if colors and ignored_values:
        raise UserError(
            f"--ignore {min(ignored_values)}: with --colors labels hold colors and no values; "
            "name a class of the table, or a color, as --ignore '#000000'"
        )
    # A row without a name describes ignored pixels.
    out = {row for row in rows if not row.name or not ignored.isdisjoint(row)}
    if lacking := [row.name for row in by_color if not row.color]:
        raise UserError(f"{colors} has no color for {lacking[0]}; give one, as name,r,g,b")
    names = list(dict.fromkeys(row.name for row in by_value or by_color if row not in out))
    if tables and not 1 <= len(names) <= IGNORE_LABEL:
        raise UserError(
            f"{paths[0]} names {len(names)} classes; it has to name 1 to {IGNORE_LABEL}"
        )

    def id_of(row: TableRow) -> int:
        if row not in out and row.name not in names:
            raise UserError(
                f"{colors} names {row.name!r}, which is no class of {own[0]}; name it there, or "
                f"leave it out by --ignore '{row.name}'"
            )
        return IGNORE_LABEL if row in out else names.index(row.name)

    values = {row.label: id_of(row) for row in by_value} or {i: i for i in range(IGNORE_LABEL)}
    colored = {row.color: id_of(row) for row in by_color if row.color}
    allowed = f"those of {paths[0].name}" if own else "0..254"
    if list(values) == list(range(len(by_value))):
        allowed = f"0..{len(by_value) - 1} ({paths[0].name} names {len(by_value)})"
    return LabelReader(
        names=names,
        palette={row.name: row.color for row in reversed([*by_value, *by_color]) if row.color},
        values=LabelMap(
            dict.fromkeys(range(256) if ignore_unknown else [IGNORE_LABEL], IGNORE_LABEL)
            | {value: number for value, number in values.items() if 0 <= value <= 255}
            | dict.fromkeys(ignored_values, IGNORE_LABEL),
            f"{allowed}, {IGNORE_LABEL} and the values of --ignore; --ignore_unknown ignores all "
            "others",
        ),
        colors=ColorMap(
            colored | {entry: IGNORE_LABEL for entry in ignored if isinstance(entry, tuple)},
            names,
            f"those of {paths[-1].name}; --ignore '#rrggbb' ignores another one, --ignore_unknown "
            "all others",
            ignore_unknown=ignore_unknown,
        )
        if colored
        else None,
        all_colored=colors is not None,
        ignores=bool(ignore or ignore_unknown or out),
    )


class TableRow(NamedTuple):
    """A row of a class table or a color table.

    Attributes:
      name: the class name; empty if the row describes ignored pixels.
      label: its value in labels, or its place in a table without values.
      color: its RGB color, if it has one.
    """

    name: str
    label: int
    color: Color | None


def _parse_ignored(ignore: Sequence[int | str], names: set[str]) -> set[int | str | Color]:
    """Returns the label values, the class names among `names`, and the colors in `ignore`."""
    ignored: set[int | str | Color] = set()
    for entry in ignore:
        if isinstance(entry, int):
            if not 0 <= entry <= 255:
                raise UserError(f"--ignore {entry} is no label value: those are 0..255")
            ignored.add(entry)
        elif entry in names:
            ignored.add(entry)
        elif entry.startswith("#"):
            try:
                ignored.add(_parse_color(entry))
            except ValueError as error:
                raise UserError(f"--ignore {entry}: {error}") from error
        else:
            raise UserError(
                f"--ignore {entry} is no label value, no color and no class: "
                f"{did_you_mean(entry, filter(None, names))}"
            )
    return ignored


# The headings and keys of common tools, in lower case.
_NAMES = ("name", "class", "label")
_LABELS = ("id", "value", "pixel value", "label")
_CHANNELS = ("red", "r", "green", "g", "blue", "b")
_COLORS = ("color", "colour", "rgb")
_LISTS = ("categories", "classes", "labels", "names")
# The lines of CamVid's label_colors.txt and of CVAT's labelmap.txt.
_COLORED_LINES = (
    re.compile(r"(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+(?P<name>.+)"),
    re.compile(r"(?P<name>[^:]+):(?P<red>\d+),(?P<green>\d+),(?P<blue>\d+)(:.*)?"),
)
# Line breaks, controls that move the cursor of a terminal, and halves of characters.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_class_table(path: pathlib.Path) -> list[TableRow]:
    """Reads a user's table of classes or of class colors.

    The file is a text with a name per line, or CamVid's or CVAT's text format; comma-separated
    values with a heading such as `value,name,red,green,blue` or `name,r,g,b`; or JSON: a list of
    names or objects, an object of names by value or of colors by name, or an object that holds such
    a list.

    Raises:
      UserError: if the file has another form, or a row has no name or repeats another row.
    """
    text, suffix = read_text(path), path.suffix.lower()
    read_entries = {".json": _json_entries, ".csv": _csv_entries}.get(suffix, _text_entries)
    try:
        entries = read_entries(json.loads(text) if suffix == ".json" else text)
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a table of classes: {error}") from error
    kind = "line" if read_entries is _text_entries else "entry"
    rows: list[TableRow] = []
    seen: set[tuple[str, Any]] = set()
    has_values: bool | None = None
    for number, entry in enumerate(entries, start=1):
        try:
            name, value, color = _parse_entry(entry)
            has_values = value is not None if has_values is None else has_values
            if has_values != (value is not None):
                raise ValueError("either every row has a value or none; give it one")
            # Several values or colors may stand for one class.
            new = {(key, v) for key, v in (("value", value), ("color", color)) if v is not None}
            new = new or {("name", name)}
            for key, repeated in new & seen:
                raise ValueError(f"it repeats the {key} {repeated}")
        except (ValueError, TypeError) as error:
            raise UserError(f"{kind} {number} of {path}: {error}") from error
        seen |= new
        rows.append(TableRow(name, number - 1 if value is None else value, color))
    return rows


def _text_entries(text: str) -> list[dict[str, Any]]:
    lines = text.rstrip().splitlines()
    uncommented = [line.strip() for line in lines if not line.startswith("#")]
    for form in _COLORED_LINES:
        matches = [match.groupdict() for match in map(form.fullmatch, uncommented) if match]
        if matches and len(matches) == len(uncommented):
            return matches
    return [{"name": line} for line in lines]


def _csv_entries(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    heading = lines[0] if lines else ""
    reader = csv.DictReader(lines, delimiter=max(",;\t", key=heading.count))
    columns = reader.fieldnames or ()
    if lines and not any(column.strip().lower() in _NAMES for column in columns):
        raise ValueError(
            f"the first line must name the columns, as value,name or name,r,g,b; it is {heading!r}"
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
    """Returns an entry of an object that has classes by value or by name."""
    if isinstance(value, dict):
        return {"id" if key.isdecimal() else "name": key, **value}
    if isinstance(value, str) and key.isdecimal():
        return {"id": key, "name": value}
    return {"name": key, "id" if isinstance(value, int) else "color": value}


def _parse_entry(entry: Mapping[str, Any]) -> tuple[str, int | None, Color | None]:
    """Returns name, value, and color."""
    fields = {
        str(key).strip().lower(): value.strip() if isinstance(value, str) else value
        for key, value in entry.items()
    }
    name_key = next((key for key in _NAMES if key in fields), None)
    if name_key is None:
        raise ValueError(f"there is no name among {', '.join(fields)!r}")
    name = fields.pop(name_key)
    labels, channels, colors = (
        [fields[key] for key in keys if fields.get(key) not in (None, "")]
        for keys in (_LABELS, _CHANNELS, _COLORS)
    )
    color = _parse_color(channels or colors[0]) if channels or colors else None
    if not isinstance(name, str) or not (name or labels or color):
        raise ValueError(f"{name!r} is no name of a class")
    if _UNPRINTABLE.search(name):
        raise ValueError(f"the name {name!r} holds a line break or a control character")
    return name, _whole(labels[0], "value") if labels else None, color


def _whole(value: Any, what: str) -> int:
    """Returns an integer from JSON or from a text of digits. Messages call it `what`."""
    if not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        raise ValueError(f"the {what} {value!r} is not a whole number, as 7 is")
    return int(value)


def _parse_color(value: str | Sequence[int | str]) -> Color:
    """Returns the RGB color of `#804080`, `128, 64, 128`, or three numbers."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    numbers = re.findall(r"-?[\d.]+", value) if isinstance(value, str) else value
    if isinstance(numbers, Sequence) and len(numbers) == 3:
        red, green, blue = (_whole(number, "color channel") for number in numbers)
        if all(0 <= number <= 255 for number in (red, green, blue)):
            return red, green, blue
    raise ValueError(f"{value!r} is no color: give three numbers 0..255, or #rrggbb")
