"""Determines how to read a model file: its input, its output, and the options that users set."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from kdjax.models.model_files import ModelFile, Tensor, channels_last, run_batch
from kdjax.models.outputs import IMAGENET, Preprocessing
from kdjax.utils import schema
from kdjax.utils.bands import RGB, Bands, default_rgb
from kdjax.utils.classes import numbered_names
from kdjax.utils.errors import UserError, WrongValue, first_line
from kdjax.utils.files import read_json
from kdjax.utils.log import logger
from kdjax.utils.schema import Range, Section, with_tuples

AUTO = "auto"
MULTIPLE = 32  # the stride of the deepest features of most networks
BINARY = ("background", "object")
DESCRIPTION = "export.json"  # of kdjax's own exports
TESTED = (64, 96)  # least size of the image that shows what a file returns

_PIXELS = Range("from 0 to 255, as the pixels are", lambda x: 0 <= x <= 255)
_DEVIATION = Range("1 or more, in the units of 8-bit pixels (0 to 255)", lambda x: x >= 1)
_MOST_CHANNELS = 16
_LAYOUTS = {"NCHW": (2, 3, 1), "NHWC": (1, 2, 3)}  # axes of height, width, and channels


@dataclasses.dataclass(frozen=True)
class FileOptions(Section):
    """How to read a model file. By default, kdjax finds out or assumes, and logs what it took."""

    layout: Literal["auto", "NCHW", "NHWC"] = AUTO  # of the input
    channels: Literal["RGB", "BGR"] = "RGB"  # order of the input's channels
    # Normalization of the pixels, red first, in the units of the images: those of 8-bit pixels for
    # photos. One number, or one for each channel.
    mean: Annotated[tuple[float, ...], schema.FINITE] = ()
    std: Annotated[tuple[float, ...], schema.POSITIVE] = ()
    image_type: Literal["uint8", "uint16", "float32"] = "uint8"  # of the images
    # How images get a size that the file takes: stretched, cut into overlapping tiles of the
    # file's size, or padded to a multiple.
    fit: Literal["auto", "resize", "tile", "pad"] = AUTO
    multiple: Annotated[int, schema.COUNT_OR_ZERO] = 0  # of the sides of images; 0 for the default
    output: str = ""  # name or index of the output with the class scores
    # What the output holds. "sigmoid" is the probability of one class.
    kind: Literal["auto", "logits", "probabilities", "sigmoid"] = AUTO
    classes: tuple[str, ...] = ()  # names, or the path of a file with a name on each line

    @classmethod
    def read(cls, options: Mapping[str, Any], where: str) -> "FileOptions":
        """Checks options and fills in the defaults.

        Args:
          options: the options of the user. A single number stands for all channels.
          where: the file, for messages.

        Raises:
          UserError: if an option is unknown or wrong.
        """
        given = with_tuples(dict(options))
        for key in ("mean", "std"):
            value = given.get(key, ())
            if isinstance(value, int | float):
                given[key] = (float(value),)
        if isinstance(given.get("output"), int):
            given["output"] = str(given["output"])
        if isinstance(given.get("classes"), str):
            given["classes"] = _names(given["classes"], f"{where}: options.classes")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return cls.of(defaults | given, f"{where}: options")


def _names(text: str, where: str) -> tuple[str, ...]:
    """Returns the names in a file with a name on each line, or those in "road,sky"."""
    if not os.path.isfile(text):
        names = text.split(",")
    else:
        try:
            names = pathlib.Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise WrongValue(where, f"{text} cannot be read: {error}") from error
    return tuple(name.strip() for name in names if name.strip())


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a file is read: the options, with nothing left open.

    Attributes:
      layout: axes of the input, "NCHW" or "NHWC".
      channels: order of the input's channels, "RGB" or "BGR".
      preprocessing: turns pixels into the values of the input.
      size: height and width of the images that the file takes; None for any.
      fit: see `FileOptions`.
      multiple: see `FileOptions`.
      output: index of the output.
      output_layout: axes of the output, or "NHW" if it has no axis for the class.
      kind: see `FileOptions`.
      class_names: a name for each class.
      bands: the bands of the images.
    """

    layout: str
    channels: str
    preprocessing: Preprocessing
    size: tuple[int, int] | None
    fit: str
    multiple: int
    output: int = 0
    output_layout: str = ""
    kind: str = ""
    class_names: tuple[str, ...] = ()
    bands: Bands = RGB


def round_up(side: int, multiple: int) -> int:
    """Returns the least multiple that is not below a side."""
    return -(-side // multiple) * multiple


def find_reading(file: ModelFile, path: str, options: FileOptions) -> Reading:
    """Returns how a file is read, and logs it in one line.

    Args:
      file: the file.
      path: its path.
      options: the options of the user.

    Raises:
      UserError: if an option does not fit the file, or if the file takes no images or returns no
        class scores.
    """
    notes: dict[str, str] = {}
    own = own_description(pathlib.Path(path))
    reading = _read_input(file, path, options, own, notes)
    reading = _read_output(file, path, options, own, reading, notes)
    listed = ", ".join(f"{key}={value}" for key, value in notes.items())
    logger.info(f"{path} is read with {listed}")
    return reading


def own_description(path: pathlib.Path) -> dict[str, Any]:
    """Returns the description that `kdjax.export` wrote next to a file, or {} for other files."""
    beside = path.with_name(DESCRIPTION)
    if not beside.is_file():
        return {}
    found = read_json(beside)
    files = [entry.get("file") for entry in found.get("exports", {}).values()]
    return found if path.name in files else {}


def _read_input(
    file: ModelFile,
    path: str,
    options: FileOptions,
    own: Mapping[str, Any],
    notes: dict[str, str],
) -> Reading:
    """Returns how images become the input of a file.

    Args:
      file: the file.
      path: its path, for messages.
      options: the options of the user.
      own: the description of an export of kdjax.
      notes: takes a line for each option.
    """
    taken = file.inputs[0] if len(file.inputs) == 1 else None
    if taken is None or taken.dtype is None or len(taken.shape) != 4:
        listed = ", ".join(map(str, file.inputs))
        raise UserError(
            f"{path}: its inputs are {listed}; a teacher has one input, images "
            "[batch, 3, height, width] or [batch, height, width, 3]"
        )
    layout = _input_layout(taken, path, options, file.layout, notes)
    height, width = (taken.shape[axis] for axis in _LAYOUTS[layout][:2])
    size = (height, width) if height and width else None
    notes["channels"] = f"{options.channels} ({_source(options.channels != 'RGB')})"
    # An axis of any length is taken for the three colors of photos.
    channels = taken.shape[_LAYOUTS[layout][2]] or 3
    preprocessing = _preprocessing(taken, path, options, notes, file.layout, channels)
    fits = ("resize", "tile") if size else ("pad", "resize")
    fit = fits[0] if options.fit == AUTO else options.fit
    if fit not in fits:
        sizes = f"images of {height} x {width} alone" if size else "images of any size"
        raise UserError(
            f"{path}: options.fit is {fit}; the file takes {sizes}: {' or '.join(fits)}"
        )
    notes["fit"] = f"{fit} ({_source(options.fit != AUTO)})"
    multiple = options.multiple or (1 if own else MULTIPLE)
    if size is None:
        notes["multiple"] = f"{multiple} ({_source(bool(options.multiple), read=bool(own))})"
    photos = channels == 3 and options.image_type == "uint8"
    bands = Bands(options.image_type, preprocessing.mean, preprocessing.std, default_rgb(channels))
    return Reading(
        layout,
        options.channels,
        preprocessing,
        size,
        fit,
        multiple,
        bands=RGB if photos else bands,
    )


def _source(given: bool, *, read: bool = False) -> str:
    return "given" if given else "read" if read else "assumed"


def _input_layout(
    taken: Tensor, path: str, options: FileOptions, usual: str, notes: dict[str, str]
) -> str:
    """Returns the layout whose axis of channels has three entries, or else some."""
    possible = [name for name in _LAYOUTS if _may_be_images(taken, name)]
    found = {name: taken.shape[_LAYOUTS[name][2]] for name in possible}
    sure = [name for name in possible if found[name] == 3]
    sure = sure or [name for name in possible if found[name]]
    allowed = sure or possible
    layout = options.layout
    if layout == AUTO:
        layout = usual if usual in allowed else (allowed or [""])[0]
    if layout not in possible:
        wanted = {"NCHW": "[batch, 3, height, width]", "NHWC": "[batch, height, width, 3]"}
        raise UserError(
            f"{path}: its input is {taken}; a teacher takes images of one size or of any, "
            f"{wanted.get(layout) or ' or '.join(wanted.values())}"
        )
    source = _source(options.layout != AUTO, read=len(sure) == 1)
    notes["layout"] = f"{layout} ({source})"
    return layout


def _may_be_images(taken: Tensor, layout: str) -> bool:
    height, width, channels = (taken.shape[axis] for axis in _LAYOUTS[layout])
    few = channels is None or channels <= _MOST_CHANNELS
    return few and (height is None) == (width is None)


def _preprocessing(
    taken: Tensor,
    path: str,
    options: FileOptions,
    notes: dict[str, str],
    usual: str,
    channels: int,
) -> Preprocessing:
    """Returns the normalization of pixels: the given one, or the usual one of such an input."""
    read = taken.dtype is not None and bool(np.issubdtype(taken.dtype, np.integer))
    if read and taken.quantized:
        # The smallest integer of the input stands for the pixel 0.
        lowest = taken.zero_point - np.iinfo(str(taken.dtype)).min
        default = _constant(float(lowest), 1 / taken.scale, channels)
    elif read or channels != 3 or options.image_type != "uint8":
        default = _constant(0.0, 1.0, channels)
    else:
        default = IMAGENET if usual == "NCHW" else _constant(0.0, 255.0, channels)
    found = Preprocessing(
        _one_each(options.mean, channels, f"{path}: options.mean") or default.mean,
        _one_each(options.std, channels, f"{path}: options.std") or default.std,
    )
    if channels == 3 and options.image_type == "uint8":
        for key, allowed in (("mean", _PIXELS), ("std", _DEVIATION)):
            for value in getattr(options, key):
                schema.check_number(f"{path}: options.{key}", value, allowed)
    for key, given in (("mean", options.mean), ("std", options.std)):
        value = getattr(found, key)
        shown = " ".join(f"{number:g}" for number in value)
        notes[key] = f"{shown} ({_source(bool(given), read=read)})"
    return found


def _constant(mean: float, std: float, channels: int) -> Preprocessing:
    return Preprocessing((mean,) * channels, (std,) * channels)


def _one_each(values: tuple[float, ...], channels: int, where: str) -> tuple[float, ...]:
    """Returns a number for each channel; () if none is given."""
    if len(values) not in (0, 1, channels):
        raise WrongValue(where, f"is {values}; give one number or {channels}")
    return tuple(map(float, values)) * (channels if len(values) == 1 else 1)


def _read_output(
    file: ModelFile,
    path: str,
    options: FileOptions,
    own: Mapping[str, Any],
    reading: Reading,
    notes: dict[str, str],
) -> Reading:
    """Returns how the output of a file becomes class scores, from its values on a random image.

    Args:
      file: the file.
      path: its path, for messages.
      options: the options of the user.
      own: the description of an export of kdjax.
      reading: how images become the input.
      notes: takes a line for each option.
    """
    size = reading.size or tuple(round_up(side, reading.multiple) for side in TESTED)
    channels = len(reading.preprocessing.mean)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, channels))
    images = (pixels - reading.preprocessing.mean) / np.array(reading.preprocessing.std)
    try:
        found = run_batch(file, images.astype(np.float32), reading.layout, reading.channels)
    # Each runtime has its own errors.
    except Exception as error:
        raise UserError(
            f"{path}: the file fails on an image of {size[0]} x {size[1]}: {first_line(error)}; "
            "options.multiple sets what the sides of images are a multiple of"
        ) from error
    index, layout = _choose_output(file, path, options, found, size, reading.layout)
    output = file.outputs[index]
    values = channels_last(output.decode(found[index]), layout)
    notes["output"] = f"{output.name} ({_source(bool(options.output), read=True)})"
    kind = _kind(values, path, options, output)
    notes["kind"] = f"{kind} ({_source(options.kind != AUTO, read=True)})"
    names = _class_names(values.shape[-1], path, options, own)
    source = _source(bool(options.classes), read=bool(own))
    notes["classes"] = f"{' '.join(names)} ({source})"
    return dataclasses.replace(
        reading, output=index, output_layout=layout, kind=kind, class_names=names
    )


def _choose_output(
    file: ModelFile,
    path: str,
    options: FileOptions,
    found: list[np.ndarray],
    size: tuple[int, ...],
    usual: str,
) -> tuple[int, str]:
    """Returns the index and the layout of the output with class scores."""
    listed = ", ".join(map(str, file.outputs))
    names = [output.name for output in file.outputs]
    chosen = range(len(found))
    if options.output:
        named = [*names, *map(str, range(len(names)))]
        if options.output not in named:
            raise UserError(
                f"{path}: there is no output {options.output}; its outputs are {listed}"
            )
        chosen = [named.index(options.output) % len(names)]
    fitting = {
        index: layout
        for index in chosen
        if _is_floating(file.outputs[index]) and (layout := _layout(found[index], size, usual))
    }
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        raise UserError(
            f"{path}: {len(fitting)} outputs may be the class scores; name one in options.output: "
            + ", ".join(str(file.outputs[index]) for index in fitting)
        )
    if any(_layout(found[index], size, usual) for index in chosen):
        raise UserError(
            f"{path}: its outputs are {listed}, whole numbers; a teacher needs class scores, not "
            "class ids: export the file without its last argmax (kdjax export --returned scores)"
        )
    raise UserError(
        f"{path}: its outputs are {listed}; a teacher has an output of class scores, "
        "[batch, classes, h, w] or [batch, h, w, classes], where h and w have the ratio of the "
        f"input's {size[0]} x {size[1]}"
    )


def _is_floating(output: Tensor) -> bool:
    return output.dtype is not None and (
        output.quantized or bool(np.issubdtype(output.dtype, np.floating))
    )


def _layout(values: np.ndarray, size: tuple[int, ...], usual: str) -> str | None:
    """Returns the layout of an output of one image whose sides have the ratio of the image's."""
    layouts = (
        {"NHW": (1, 2)}
        if values.ndim == 3
        else {usual: _LAYOUTS[usual][:2]} | {name: axes[:2] for name, axes in _LAYOUTS.items()}
    )
    if values.ndim not in (3, 4):
        return None
    for name, axes in layouts.items():
        cells = [values.shape[axis] for axis in axes]
        strides = [side / cell for side, cell in zip(size, cells, strict=True)]
        # Sides may be rounded. A single cell is a score of the whole image.
        if min(cells) > 1 and 0.8 < strides[0] / strides[1] < 1.25:
            return name
    return None


def _kind(values: np.ndarray, path: str, options: FileOptions, output: Tensor) -> str:
    """Returns the given kind, or the one that the values on a random image show."""
    shares = bool(values.min() >= -1e-3 and values.max() <= 1 + 1e-3)
    if values.shape[-1] == 1:
        found, kinds = ("sigmoid" if shares else "logits"), ("logits", "sigmoid")
    else:
        sums = shares and np.abs(values.sum(-1) - 1).max() < 0.02 * values.shape[-1] ** 0.5
        found, kinds = ("probabilities" if sums else "logits"), ("logits", "probabilities")
    kind = found if options.kind == AUTO else options.kind
    if kind not in kinds:
        raise UserError(
            f"{path}: options.kind is {kind}; the output {output} has {values.shape[-1]} channels, "
            f"which hold {' or '.join(kinds)}"
        )
    if kind != "logits" and not shares:
        raise UserError(
            f"{path}: options.kind is {kind}; the output {output} has values from "
            f"{values.min():.3g} to {values.max():.3g} on a random image: use logits"
        )
    return kind


def _class_names(
    channels: int, path: str, options: FileOptions, own: Mapping[str, Any]
) -> tuple[str, ...]:
    names, count = options.classes or tuple(own.get("class_names", ())), max(channels, 2)
    if channels == 1 and len(names) == 1:
        names = (BINARY[0], *names)
    if not names:
        return BINARY if channels == 1 else numbered_names(count)
    if len(names) != count or len(set(names)) < count:
        raise UserError(
            f"{path}: options.classes names {len(names)} classes, {len(set(names))} of them "
            f"different; the file scores {count}"
        )
    return names
