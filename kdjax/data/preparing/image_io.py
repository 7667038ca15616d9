"""Decoding of original files: photos, labels, lists, MATLAB's files, with what is wrong named."""

import codecs
import contextlib
import dataclasses
import io
import os
import pathlib
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from kdjax.data.preparing.tree import File
from kdjax.utils.classes import hexadecimal
from kdjax.utils.errors import UserError

# Of files that count as images where a folder is named; in lower case.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Bits a channel of Pillow's modes that have more than 8.
_WIDE_MODES = {"I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}
_PNG_DEPTH = 24  # place in a PNG file of the byte that says how many bits a channel has


class DamagedFile(UserError):
    """A file that cannot be read, as one is after a broken download or copy."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image in 8-bit RGB.

    Attributes:
      pixels: decoded, and of mode RGB.
      original: the file itself where it holds the same in PNG or JPEG, else None.
    """

    pixels: Image.Image
    original: bytes | None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.height, self.pixels.width

    def encode(self) -> bytes:
        """The file itself, byte by byte, or a PNG of the pixels."""
        # Here and not above: reading images must not need TFDS, as `kdjax.predict` does not.
        from kdjax.data.preparing.builder import encode_png

        return self.original or encode_png(np.asarray(self.pixels))

    def encode_tiles(self) -> list[bytes]:
        """PNG tiles of the pixels; of a JPEG, which decodes fast, the file itself."""
        if self.original and self.pixels.format == "JPEG":
            return [self.original]
        from kdjax.data.loading import records

        return records.encode_tiles(np.asarray(self.pixels))


def read_photo(file: File, *, upright: bool = False, for_training: bool = False) -> Photo:
    """Decodes an image of any kind.

    Args:
      file: gray, palette, and CMYK images become 8-bit RGB; a PNG loses its alpha channel.
      upright: whether the orientation that a camera noted (EXIF) is followed. Decoders of
        records do not know it, so that the image is turned here.
      for_training: whether the decoder of training, which takes less, has to read it too.

    Raises:
      DamagedFile: the file cannot be decoded to its end.
      UserError: its pixels have more than 8 bits a channel, or it is a TIFF with further channels.
    """
    data, image = _decoded(file, for_training=for_training)
    _check_channels(file, data, image)
    if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)  # which has no format any more
    if image.mode == "RGB" and image.format in ("PNG", "JPEG"):
        return Photo(image, data)
    return Photo(as_rgb(image, str(file)), None)


def as_rgb(image: Image.Image, who: str) -> Image.Image:
    """An image of any mode in 8-bit RGB.

    Raises:
      UserError: its pixels have more than 8 bits a channel; `who` names it.
    """
    if image.mode in _WIDE_MODES:
        raise _too_wide(who, _WIDE_MODES[image.mode])
    return image.convert("RGB")


def _too_wide(who: str, bits: int) -> UserError:
    return UserError(
        f"{who} has {bits} bits a channel, and images have 8: scale its values to 0..255 as suits "
        "them, and save it with 8 bits"
    )


def _check_channels(file: File, data: bytes, image: Image.Image) -> None:
    """Refuses what Pillow would cut off without a word: low bits, and channels beyond RGB.

    Raises:
      UserError: its pixels have more than 8 bits a channel, or it is a TIFF with further channels.
    """
    bits = data[_PNG_DEPTH] if image.format == "PNG" else 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        channels = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        if channels not in ((4,) if image.mode == "CMYK" else (1, 3)):
            raise UserError(
                f"{file} is a TIFF of {channels} channels, and images have 1 (gray) or 3 (RGB): "
                "save it with the channels that the network shall see"
            )
    if bits > 8:
        raise _too_wide(str(file), bits)


def read_label(file: File) -> Image.Image:
    """Decodes a label image.

    Raises:
      DamagedFile: the file cannot be decoded to its end.
      UserError: it is a JPEG.
    """
    _, label = _decoded(file, for_training=True)
    if label.format == "JPEG":
        raise UserError(
            f"{file} is a JPEG, whose compression changes the values and colours of a label; save "
            "it as PNG from where it was drawn"
        )
    return label


def has_colors(label: Image.Image) -> bool:
    """Whether the pixels of a label are colours by their mode: RGB or a palette's."""
    return label.mode not in ("L", "LA", "1", "I", "I;16")


def values_of(
    label: Image.Image, file: File, *, advice: str = "save it with these as values"
) -> UInt8[np.ndarray, "H W"]:
    """The values of a label as they are: indices of a palette image, not its colours.

    Args:
      label: as `read_label` gives it.
      file: where it was read, for messages.
      advice: what to do where it holds colours and no class ids, for messages.

    Raises:
      UserError: it holds colours, or values above 255.
    """
    if label.mode in ("1", "LA"):
        label = label.convert("L")
    if label.mode in ("RGB", "RGBA"):
        colors = np.asarray(label)[..., :3]
        colored = (colors != colors[..., :1]).any(-1)
        if colored.any():
            example = hexadecimal(colors[colored][0])
            raise UserError(f"{file} holds colours, as {example}, and no class ids; {advice}")
        return colors[..., 0]
    if label.mode not in ("L", "P", "I", "I;16"):
        raise UserError(
            f"{file} has mode {label.mode}; a label has to be a PNG of one 8-bit channel (grey or "
            "palette) whose values are class ids"
        )
    values = np.asarray(label)
    if values.max() > 255:
        raise UserError(f"{file} holds the value {values.max()}; labels are 0..255")
    return values.astype(np.uint8)


def read_values(file: File) -> UInt8[np.ndarray, "H W"]:
    """`values_of` the label in a file.

    Raises:
      DamagedFile: the file cannot be decoded to its end.
      UserError: as for `read_label` and `values_of`.
    """
    return values_of(read_label(file), file)


def read_text(file: File) -> str:
    """The text of a list, without the mark that some editors put before it.

    Raises:
      UserError: it is not UTF-8.
    """
    data = file.read().removeprefix(codecs.BOM_UTF8)
    wrong = data.find(b"\0")  # as in UTF-16
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        line = data[:wrong].count(b"\n") + 1
        raise UserError(f"{file} is not UTF-8 text (line {line}); save it as UTF-8")
    return text


def read_matlab(file: File, variable: str, *fields: str) -> UInt16[np.ndarray, "H W"]:
    """A label matrix in a MATLAB file (version 7 or before), of whatever number type.

    Args:
      file: to read.
      variable: its name.
      fields: the way to the matrix where the variable is a structure.

    Raises:
      DamagedFile: the file cannot be read.
      UserError: it holds no such matrix.
    """
    try:
        value: Any = scipy.io.loadmat(io.BytesIO(file.read()), variable_names=[variable])
    except Exception as error:  # SciPy lets through whatever comes of odd bytes.
        raise DamagedFile(f"{file} cannot be read as a MATLAB file: {error}") from error
    try:
        value = value[variable]
        for field in fields:
            value = value[field].item()
        height, width = value.shape
        return value.astype(np.uint16).reshape(height, width)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        name = ".".join((variable, *fields))
        raise UserError(f"{file} holds no matrix {name}; is it from another data set?") from error


def _decoded(file: File, *, for_training: bool) -> tuple[bytes, Image.Image]:
    """Reads and decodes the whole file, so that a truncated one is noticed."""
    try:
        data = file.read()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:  # Pillow lets through whatever its decoders raise.
        reason = "it has no format that is known" if "BytesIO" in str(error) else error
        raise DamagedFile(f"{file} cannot be read as an image: {reason}") from error
    if for_training:
        _check_for_training(file, data, image)
    return data, image


def _check_for_training(file: File, data: bytes, image: Image.Image) -> None:
    """Reads a file once more as training does, which decodes with TensorFlow.

    Pillow takes PNG files whose end is missing or whose checksums are wrong. Both take JPEG files
    whose data end early or are no code, and fill up the rest of the image.

    Raises:
      DamagedFile: the file cannot be decoded to its end.
    """
    if image.format != "PNG" and (image.format, image.mode) not in (("JPEG", "RGB"), ("JPEG", "L")):
        return
    # Here and not above: reading images must not need TensorFlow, as `kdjax.predict` does not.
    from kdjax.data import _tensorflow

    warned = _warnings_of_libjpeg() if image.format == "JPEG" else contextlib.nullcontext([])
    try:
        with warned as warnings:
            _tensorflow.tf.io.decode_image(data, channels=3, expand_animations=False)
    except _tensorflow.tf.errors.OpError as error:
        raise DamagedFile(
            f"{file} cannot be read as an image: {_tensorflow.reason(error)}"
        ) from error
    if warnings:
        raise DamagedFile(f"{file} cannot be read as an image: {warnings[0]}")


# Two threads must not take the error output at once.
_TAKING = threading.Lock()
# What libjpeg says where pixels are missing or wrong. It also says that there are "extraneous bytes
# before marker", which cameras leave in files that are whole.
_LOST_PIXELS = re.compile(
    r"Corrupt JPEG data: (premature end|bad \w+ code|found marker).*|Premature end of JPEG file"
)


@contextlib.contextmanager
def _warnings_of_libjpeg() -> Iterator[list[str]]:
    """Gives the lines about lost pixels that libjpeg writes meanwhile, when it is done.

    TensorFlow has it write them to the error output of the process, and tells of them nowhere else.
    What others write there meanwhile is written on.
    """
    found: list[str] = []
    with _TAKING, tempfile.TemporaryFile() as taken:
        output = os.dup(2)
        os.dup2(taken.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(output, 2)
            os.close(output)
            taken.seek(0)
            for line in taken:
                text = line.decode(errors="replace").strip()
                if _LOST_PIXELS.fullmatch(text):
                    found.append(text)
                else:
                    os.write(2, line)


def upright_size(path: pathlib.Path) -> tuple[int, int]:
    """Height and width of an image as it is looked at, from its header.

    Raises:
      UserError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # Pillow lets through whatever its decoders raise.
        raise UserError(f"{path} cannot be read as an image") from error
    return (width, height) if turned else (height, width)
