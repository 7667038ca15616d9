"""Labels drawn from COCO's annotation files: polygons, and run-length encoded masks (RLE).

pycocotools is optional, and is imported when a set with such files is prepared.
"""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.conversion import Pair
from kdjax.data.preparing.image_io import read_text
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError
from kdjax.utils.imports import did_you_mean

FILE, FOLDER = "annotations.json", "annotations"
BACKGROUND = "background"  # the class of pixels without a mask


def annotation_files(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the annotation files next to `images/`: by split, or one for all under "".

    Raises:
      UserError: if there are label images, too.
    """
    found = {path.stem: path for path in sorted((source / FOLDER).glob("*.json"))}
    if (source / FILE).is_file():
        found[""] = source / FILE
    if found and (source / "labels").exists():
        first = next(iter(found.values()))
        raise UserError(f"{source} has labels/ and {first.relative_to(source)}; keep one of them")
    if "" in found and len(found) > 1:
        raise UserError(f"{source} has {FILE} and {FOLDER}/; keep one of them")
    return found


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image of an annotation file, and the masks in it, as class name and segmentation."""

    size: tuple[int, int]
    masks: list[tuple[str, Any]]


class CocoLabels:
    """Draws the label of an image from its annotations.

    Smaller masks are drawn over larger ones. A pixel without a mask is of the class "background".

    Args:
      files: the annotation files, as `annotation_files` returns them.
      ignore: the names of classes that become 255.

    Raises:
      UserError: if a file is damaged, files name different categories, pycocotools is missing, or
        `ignore` names no class.

    Attributes:
      names: the class names by id.
      palette: empty, because annotation files have no colors.
      ignores: True if `ignore` names classes.
    """

    def __init__(self, files: Mapping[str, pathlib.Path], ignore: Sequence[int | str] = ()):
        try:
            self._mask = importlib.import_module("pycocotools.mask")
        except ImportError as error:
            raise UserError(
                f'{next(iter(files.values()))} is read by pycocotools: pip install "kdjax[coco]"'
            ) from error
        self._files = files
        self._images: dict[pathlib.Path, dict[str, _Image]] = {}
        categories: list[str] | None = None
        for path in files.values():
            self._images[path], found = _read(path)
            if categories not in (None, found):
                raise UserError(f"{path} names other categories than the other files in {FOLDER}/")
            categories = found
        names = list(dict.fromkeys([BACKGROUND, *(categories or ())]))
        for entry in ignore:
            if entry not in names:
                known = did_you_mean(str(entry), names)
                raise UserError(f"--ignore {entry} is no class of the annotations: {known}")
        self.names = [name for name in names if name not in ignore]
        if not 1 <= len(self.names) <= IGNORE_LABEL:
            raise UserError(
                f"{next(iter(files.values()))} leaves {len(self.names)} classes; there must be 1 "
                f"to {IGNORE_LABEL}"
            )
        self._ids = dict.fromkeys(names, IGNORE_LABEL) | {
            name: number for number, name in enumerate(self.names)
        }
        self.palette: dict[str, Any] = {}
        self.ignores = bool(ignore)

    def pair_up(
        self, root: pathlib.Path, split: str, images: Mapping[str, pathlib.Path]
    ) -> list[Pair]:
        """Returns the pairs of a split. A label is named by its file and its entry there.

        Args:
          root: the folder `images/`.
          split: the split, or "" for a tree without splits.
          images: the images of the split by name.

        Raises:
          UserError: if an image has no entry, or two images have the same one.
        """
        if "" not in self._files and split not in self._files:
            raise UserError(f"there is no {FOLDER}/{split or 'train'}.json beside {root}")
        file = self._files.get("") or self._files[split]
        pairs: dict[str, Pair] = {}
        for name, path in sorted(images.items()):
            below = path.relative_to(root)
            known = [below.as_posix(), path.relative_to(root / split).as_posix(), path.name]
            entry = next((key for key in known if key in self._images[file]), None)
            if entry is None:
                raise UserError(f"image {path} is not in {file}; add it, or remove the image")
            if entry in pairs:
                raise UserError(f"{pairs[entry].image} and {path} are both {entry} in {file}")
            pairs[entry] = Pair(name, path, file / entry)
        return list(pairs.values())

    def check_found(self, pairs: Sequence[Pair]) -> None:
        """Checks that every image of the annotation files has been found."""
        found = {pair.label for pair in pairs}
        for file, images in self._images.items():
            for entry in images:
                if file / entry not in found:
                    raise UserError(f"{file} names {entry}, which is not under images/")

    def __call__(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Returns the class ids 0..K-1, and 255 for ignored pixels, of a label of `pair_up`."""
        file = next(file for file in self._images if path.is_relative_to(file))
        image = self._images[file][path.relative_to(file).as_posix()]
        masks = [(name, self._encoded(path, image, mask)) for name, mask in image.masks]
        label = np.full(image.size, self._ids[BACKGROUND], np.uint8)
        for name, mask in sorted(masks, key=lambda mask: -int(self._mask.area(mask[1]))):
            label[self._mask.decode(mask).astype(bool)] = self._ids[name]
        return label

    def _encoded(self, path: pathlib.Path, image: _Image, mask: Any) -> Any:
        """Returns a mask as pycocotools encodes it."""
        height, width = image.size
        if isinstance(mask, list):
            if not mask or not all(map(_is_polygon, mask)):
                raise UserError(
                    f"{path} has a mask that is no list of polygons, each x, y, x, y, ... of at "
                    "least three points"
                )
            return self._mask.merge(self._mask.frPyObjects(mask, height, width))
        if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
            raise UserError(f"{path} has a box without a mask; a label needs polygons or RLE")
        if list(mask["size"]) != [height, width]:
            raise UserError(
                f"{path} has a mask of {mask['size']} (height, width); its image has "
                f"{[height, width]}"
            )
        counts = mask["counts"]
        # pycocotools does not notice if counts leave pixels out.
        counts = _counts(counts) if isinstance(counts, str) else counts
        if not _are_counts(counts) or sum(counts) != height * width:
            raise UserError(
                f"{path} has a damaged RLE mask: its counts do not add up to the image's pixels"
            )
        return self._mask.frPyObjects({**mask, "counts": counts}, height, width)


def _counts(text: str) -> list[int]:
    """Decodes the counts of an RLE mask: digits of five bits, and differences from the third on."""
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last digit of a number
            number -= (1 << shift) if bits & 16 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts


def _are_counts(counts: Any) -> bool:
    return isinstance(counts, list) and all(isinstance(x, int) and x >= 0 for x in counts)


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(isinstance(number, int | float) for number in points)
    )


def _read(path: pathlib.Path) -> tuple[dict[str, _Image], list[str]]:
    """Returns the images of an annotation file by file name, and its categories by id."""
    try:
        content = json.loads(read_text(path))
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {
            entry["id"]: (
                str(entry["file_name"]),
                _Image((int(entry["height"]), int(entry["width"])), []),
            )
            for entry in content["images"]
        }
        for entry in content["annotations"]:
            _, image = images[entry["image_id"]]
            name = categories[entry["category_id"]]
            image.masks.append((name, entry.get("segmentation")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no COCO annotation file of images, categories, and annotations: "
            f"{type(error).__name__}: {error}"
        ) from error
    by_name = dict(images.values())
    if len(by_name) < len(images):
        raise UserError(f"{path} names an image twice; file names must differ")
    return by_name, [categories[number] for number in sorted(categories)]
