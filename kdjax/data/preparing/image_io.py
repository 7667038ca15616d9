"""Reads original files: photos, labels, lists, and MATLAB files."""

import codecs
import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from kdjax.utils.classes import hexadecimal
from kdjax.utils.errors import UserError

# Pillow refuses more than 179 million pixels, to prevent attacks. Users read their own files here.
Image.MAX_IMAGE_PIXELS = None

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # of images, in lower case
# Pillow's modes with more than 8 bits per channel.
_WIDE_MODES = {"I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}
# A JPEG of fewer pixels decodes fast, and is much smaller than its tiles.
LARGE_JPEG = 2_000_000
PNG_DEPTH = 24  # offset of the byte in a PNG file that holds the bits per channel


class DamagedFile(UserError):
    """A file that cannot be decoded, for example after an interrupted download."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image in 8-bit RGB.

    Attributes:
      pixels: the decoded image, of mode RGB.
      original: the bytes of the file if it is a PNG or JPEG of the same pixels, else None.
    """

    pixels: Image.Image
    original: bytes | None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.height, self.pixels.width

    def encode(self) -> bytes:
        """Returns the original bytes, or else a PNG of the pixels."""
        return self.original or encode_png(np.asarray(self.pixels))

    def encode_tiles(self) -> list[bytes]:
        """Returns PNG tiles of the pixels. A JPEG that is not large stays one file."""
        height, width = self.shape
        if self.original and self.pixels.format == "JPEG" and height * width < LARGE_JPEG:
            return [self.original]
        from kdjax.data.loading import records

        return records.encode_tiles(np.asarray(self.pixels))


def encode_png(pixels: UInt8[np.ndarray, "H W ..."]) -> bytes:
    """Returns the PNG bytes of an RGB image `[H, W, 3]` or a label `[H, W]`."""
    buffer = io.BytesIO()
    # Level 3 writes three times faster than the default 6, and the files are a few percent larger.
    Image.fromarray(pixels).save(buffer, "png", compress_level=3)
    return buffer.getvalue()


def read_photo(path: pathlib.Path, *, upright: bool = False, for_training: bool = False) -> Photo:
    """Decodes an image of any kind to 8-bit RGB. A PNG loses its alpha channel.

    Args:
      path: the file.
      upright: whether to apply the orientation in the EXIF data. Training ignores it.
      for_training: whether to check that TensorFlow can decode the file too, as training does.
    """
    data, image = _decode(path, for_training=for_training)
    _check_channels(path, data, image)
    if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)  # loses its format
    if image.mode == "RGB" and image.format in ("PNG", "JPEG"):
        return Photo(image, data)
    return Photo(as_rgb(image, str(path)), None)


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns an image of any mode in 8-bit RGB."""
    if image.mode in _WIDE_MODES:
        raise _too_wide(name, _WIDE_MODES[image.mode])
    return image.convert("RGB")


def _too_wide(name: str, bits: int) -> UserError:
    return UserError(
        f"{name} has {bits} bits a channel, and images have 8: scale its values to 0..255 and save "
        "it with 8 bits"
    )


def _check_channels(path: pathlib.Path, data: bytes, image: Image.Image) -> None:
    """Refuses images whose low bits or additional channels Pillow would drop silently."""
    bits = data[PNG_DEPTH] if image.format == "PNG" else 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, channels = _tiff_form(image)
        if not _is_color(image, channels):
            raise UserError(
                f"{path} is a TIFF of {channels} channels, and images have 1 (gray) or 3 (RGB): "
                "save it with the channels that the network should see"
            )
    if bits > 8:
        raise _too_wide(str(path), bits)


def _tiff_form(image: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    """Returns the bits of a channel and the number of channels of a TIFF file."""
    bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return bits, image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)


def is_tiff_photo(image: Image.Image) -> bool:
    """Returns True if a TIFF file becomes 8-bit RGB without losing bits or channels."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    bits, channels = _tiff_form(image)
    # Several gray pages are bands.
    pages = image.n_frames if channels == 1 else 1
    return bits <= 8 and pages == 1 and _is_color(image, channels)


def _is_color(image: Image.Image, channels: int) -> bool:
    return channels in ((4,) if image.mode == "CMYK" else (1, 3))


def read_label(path: pathlib.Path) -> Image.Image:
    """Decodes a label image."""
    _, label = _decode(path, for_training=True)
    if label.format == "JPEG":
        raise UserError(
            f"{path} is a JPEG, whose compression changes the values and colors of a label; export "
            "it again as PNG"
        )
    return label


def values_of(
    label: Image.Image, path: pathlib.Path, *, advice: str = "save it with class ids as values"
) -> UInt8[np.ndarray, "H W"]:
    """Returns the values of a label. Of a palette image, these are the indices.

    Args:
      label: the result of `read_label`.
      path: its file, for messages.
      advice: what to do if the label holds colors, for messages.
    """
    if label.mode in ("1", "LA"):
        label = label.convert("L")
    if label.mode in ("RGB", "RGBA"):
        colors = np.asarray(label)[..., :3]
        colored = (colors != colors[..., :1]).any(-1)
        if colored.any():
            example = hexadecimal(colors[colored][0])
            raise UserError(f"{path} holds colors, as {example}, and no class ids; {advice}")
        return colors[..., 0]
    if label.mode not in ("L", "P", "I", "I;16"):
        raise UserError(
            f"{path} has mode {label.mode}; a label has to be a PNG of one 8-bit channel (gray or "
            "palette) whose values are class ids"
        )
    values = np.asarray(label)
    if values.max() > 255:
        raise UserError(f"{path} holds the value {values.max()}; labels are 0..255")
    return values.astype(np.uint8)


def read_values(path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
    """Returns `values_of` the label in a file, with the errors of `read_label` and `values_of`."""
    return values_of(read_label(path), path)


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a file without a byte order mark."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    wrong = data.find(b"\0")  # as in UTF-16
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        line = data[:wrong].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8")
    return text


def read_matlab(path: pathlib.Path, variable: str, *fields: str) -> UInt16[np.ndarray, "H W"]:
    """Returns a label matrix of a MATLAB file (version 7 or earlier).

    Args:
      path: the file.
      variable: the variable that holds the matrix.
      fields: the fields that lead to the matrix if the variable is a structure.
    """
    try:
        value: Any = scipy.io.loadmat(path, variable_names=[variable], appendmat=False)
    except Exception as error:  # SciPy raises anything for malformed bytes.
        raise DamagedFile(f"{path} cannot be read as a MATLAB file: {error}") from error
    try:
        value = value[variable]
        for field in fields:
            value = value[field].item()
        height, width = value.shape
        return value.astype(np.uint16).reshape(height, width)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        name = ".".join((variable, *fields))
        raise UserError(f"{path} holds no matrix {name}; is it from another data set?") from error


def upright_size(path: pathlib.Path) -> tuple[int, int]:
    """Returns height and width of an image after applying its EXIF orientation, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # Pillow lets through any error of its decoders.
        raise UserError(f"{path} cannot be read as an image") from error
    return (width, height) if turned else (height, width)


def _decode(path: pathlib.Path, *, for_training: bool) -> tuple[bytes, Image.Image]:
    """Reads and decodes a whole file, to notice a truncated one."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:  # Pillow lets through any error of its decoders.
        reason = "its format is unknown" if "BytesIO" in str(error) else error
        raise DamagedFile(f"{path} cannot be read as an image: {reason}") from error
    if for_training:
        _check_for_training(path, data, image)
    return data, image


def _check_for_training(path: pathlib.Path, data: bytes, image: Image.Image) -> None:
    """Checks that TensorFlow decodes a file.

    Pillow accepts PNG files that are cut at the end or have wrong checksums.
    """
    if image.format != "PNG" and (image.format, image.mode) not in (("JPEG", "RGB"), ("JPEG", "L")):
        return  # stored as PNG
    # Imported here because `kdjax.predict` reads images without TensorFlow.
    from kdjax.data import _tensorflow

    try:
        _tensorflow.tf.io.decode_image(data, channels=3, expand_animations=False)
    except _tensorflow.tf.errors.OpError as error:
        raise DamagedFile(
            f"{path} cannot be read as an image: {_tensorflow.reason(error)}"
        ) from error
