"""Builder of `folder`: anybody's images and labels, in two trees of the same shape."""

import concurrent.futures
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from kdjax.data.builder import IGNORE_LABEL, SegmentationBuilder, encode_png
from kdjax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)

_USUAL_SPLITS = ("train", "val", "test")  # others follow, by name
_PORTION = 256  # images

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class _Pair:
    """An image and its label: `name` is what their paths share."""

    name: str
    image: pathlib.Path
    label: pathlib.Path


class Folder(SegmentationBuilder):
    """Images under `images/<split>`, labels of the same names under `labels/<split>`.

    Everything is checked before anything is written. Labels are single-channel PNG files whose
    values are class ids; `classes.txt` may name the classes, a line each, from id 0 on. Without it
    there are as many classes as the largest id says.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("ignore",)

    def __init__(self, *, source: str, ignore: Sequence[int] = (), **kwargs):
        """Checks the tree under `source`; label values in `ignore` become 255."""
        self._source = pathlib.Path(source)
        self._kept = _ignoring(ignore)
        self._pairs = _find_pairs(self._source)
        self._class_names = self._check(_read_class_names(self._source / "classes.txt"))
        super().__init__(**kwargs)

    @property
    def class_names(self) -> list[str]:
        """The lines of classes.txt, or `class_0` and so on."""
        return self._class_names

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self._pairs}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        yield from enumerate(_in_parallel(self._convert, self._pairs[split], f"writing {split}"))

    def _convert(self, pair: _Pair) -> dict[str, bytes | str]:
        return {
            "image": _image_bytes(pair.image),
            "label": encode_png(self._kept[_read_label(pair.label)]),
            "name": pair.name,
        }

    def _check(self, names: list[str]) -> list[str]:
        """Reads every file once; returns the names of the classes."""
        limit = len(names) or IGNORE_LABEL

        def highest_class(pair: _Pair) -> int:
            image, label = _load(pair.image), _read_label(pair.label)
            if label.shape != image.size[::-1]:
                raise UserError(
                    f"{pair.label} is {label.shape[1]} x {label.shape[0]} pixels, but {pair.image} "
                    f"is {image.width} x {image.height}; they have to be of one size"
                )
            present = np.unique(self._kept[label])
            present = present[present != IGNORE_LABEL]
            if present.size and present[-1] >= limit:
                raise UserError(
                    f"{pair.label} holds the value {present[-1]}; allowed are 0..{limit - 1} "
                    f"(classes.txt names {limit}), {IGNORE_LABEL}, and the values of --ignore"
                )
            return int(present[-1]) if present.size else -1

        pairs = [pair for pairs in self._pairs.values() for pair in pairs]
        highest = max(_in_parallel(highest_class, pairs, "checking"))
        if highest < 1 and not names:
            raise UserError(
                f"the labels under {self._source} hold no class but 0, and {IGNORE_LABEL} means "
                "ignored; save them with class ids 0, 1, 2, ... as values"
            )
        return names or [f"class_{i}" for i in range(highest + 1)]


def _ignoring(values: Sequence[int]) -> UInt8[np.ndarray, "256"]:
    """What each label value becomes: 255 for `values`, itself for others."""
    table = np.arange(256, dtype=np.uint8)
    for value in values:
        if not 0 <= value <= 255:
            raise UserError(f"--ignore {value} is no label value: those are 0..255")
        table[value] = IGNORE_LABEL
    return table


def _read_class_names(path: pathlib.Path) -> list[str]:
    """The lines of `path`; nothing where there is no such file."""
    if not path.is_file():
        return []
    names = [line.strip() for line in path.read_text().rstrip().splitlines()]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            what = f"repeats the name {name!r}" if name else "is empty"
            raise UserError(f"line {number + 1} of {path} {what}; each line has to name one class")
    if not 1 <= len(names) <= IGNORE_LABEL:
        raise UserError(f"{path} names {len(names)} classes; it has to name 1 to {IGNORE_LABEL}")
    return names


def _find_pairs(source: pathlib.Path) -> dict[str, list[_Pair]]:
    """The images and labels of each split, sorted by name."""
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; --source names the one that holds images/")
    trees = {}
    for kind in ("images", "labels"):
        if not (source / kind).is_dir():
            raise UserError(f"{source} has no folder {kind}/; it needs images/ and labels/")
        trees[kind] = {path.name for path in (source / kind).iterdir() if _is_split(path)}
    splits = sorted(trees["images"] | trees["labels"] | {"train"}, key=_split_order)
    for split in splits:
        for kind, found in trees.items():
            if split not in found:
                raise UserError(f"{source} has no folder {kind}/{split}/")
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise UserError(
                f"{source}/images/{split}: a split is named by letters, digits and _, but not `all`"
            )
    return {split: _pair_up(source, split) for split in splits}


def _split_order(split: str) -> tuple[int, str]:
    usual = _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS)
    return usual, split


def _is_split(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _pair_up(source: pathlib.Path, split: str) -> list[_Pair]:
    images = _by_name(source / "images" / split, IMAGE_SUFFIXES)
    labels = _by_name(source / "labels" / split, LABEL_SUFFIXES)
    if not images and not labels:
        raise UserError(f"{source}/images/{split} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            wanted = source / "labels" / split / f"{name}.png"
            raise UserError(f"image {images[name]} has no label; expected {wanted}")
        wanted = source / "images" / split / name
        raise UserError(
            f"label {labels[name]} has no image; expected {wanted}.png, .jpg or the like"
        )
    return [_Pair(name, images[name], labels[name]) for name in sorted(images)]


def _by_name(root: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Files anywhere under `root`, by their path from there without the suffix."""
    found: dict[str, pathlib.Path] = {}
    for path in sorted(root.rglob("*")):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {path} have one name; rename or remove one of them")
        found[name] = path
    return found


def _load(path: pathlib.Path) -> Image.Image:
    """Opens and decodes the whole file, so that a truncated one is noticed."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow lets through whatever its decoders raise.
        reason = str(error).replace(f" {str(path)!r}", "")
        raise UserError(f"{path} cannot be read as an image: {reason}") from error
    return image


def _image_bytes(path: pathlib.Path) -> bytes:
    """The file itself where it is 8-bit RGB in PNG or JPEG; otherwise made into such a PNG."""
    image = _load(path)
    if image.mode == "RGB" and image.format in ("PNG", "JPEG"):
        return path.read_bytes()
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts values off at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"{path} has 32-bit pixels; save it with 8 bits a channel")
    return encode_png(np.asarray(image.convert("RGB")))


def _read_label(path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
    """The values of a label as they are: indices of a palette image, not its colours."""
    label = _load(path)
    if label.mode not in ("L", "P", "I", "I;16"):
        raise UserError(
            f"{path} has mode {label.mode}; a label has to be a PNG of one 8-bit channel (grey or "
            "palette) whose values are class ids"
        )
    values = np.asarray(label)
    if values.max() > 255:
        raise UserError(f"{path} holds the value {values.max()}; labels are 0..{IGNORE_LABEL}")
    return values.astype(np.uint8)


def _in_parallel(
    function: Callable[[_Pair], _Result], pairs: Sequence[_Pair], what: str
) -> Iterator[_Result]:
    """Results in the order of `pairs`; Pillow decodes without holding Python's lock."""
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        # Shown in a terminal only, and gone when done.
        tqdm(total=len(pairs), desc=what, unit=" images", leave=False, disable=None) as progress,
    ):
        # In portions: results wait in memory, and a mistake should stop the work soon.
        for start in range(0, len(pairs), _PORTION):
            for result in pool.map(function, pairs[start : start + _PORTION]):
                progress.update()
                yield result
