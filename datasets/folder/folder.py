"""Builder of `folder`: anybody's images and labels, in two trees of the same shape."""

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.classes import IGNORE_LABEL
from kdjax.data.preparing.conversion import ConversionBuilder, Pair
from kdjax.data.preparing.image_io import read_text, read_values
from kdjax.data.preparing.tree import File, check_name
from kdjax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)

_USUAL_SPLITS = ("train", "val", "test")  # others follow, by name
# Folders that hold splits for certain: images are not shared out across them.
_SPLIT_LIKE = re.compile("train|training|val|valid|validation|test|testing", re.IGNORECASE)


class Folder(ConversionBuilder):
    """Images under `images/<split>`, labels of the same names under `labels/<split>`.

    Or under `images` and `labels` alone: then `val_share` and `test_share` say which parts of the
    images become splits of their own, by a hash of their names.

    Everything is checked before anything is written. Labels are single-channel PNG files whose
    values are class ids; `classes.txt` may name the classes, a line each, from id 0 on. Without it
    there are as many classes as the largest id says.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("ignore", "val_share", "test_share")
    UPRIGHT: ClassVar[bool] = True

    def __init__(
        self,
        *,
        ignore: Sequence[int] = (),
        val_share: float | None = None,
        test_share: float | None = None,
        **kwargs,
    ):
        """Checks the tree; label values in `ignore` become 255.

        The shares, above 0 and together below 1, are for a tree without splits.
        """
        self._kept = _ignoring(ignore)
        self._shares = _checked_shares({"val": val_share, "test": test_share})
        self._class_names: list[str] = []
        super().__init__(**kwargs)

    @property
    def class_names(self) -> list[str]:
        """The lines of classes.txt, or `class_0` and so on."""
        return self._class_names

    def find_pairs(self, source: pathlib.Path) -> dict[str, list[Pair]]:
        """The pairs of each split, sorted by name; each was read once to find out the classes."""
        pairs = _find_pairs(source, self._shares)
        names = _read_class_names(source / "classes.txt")
        limit = len(names) or IGNORE_LABEL
        highest = -1

        def checked(pair: Pair) -> tuple[Pair, int]:
            present = np.unique(self.read(pair)[1])
            present = present[present != IGNORE_LABEL]
            if present.size and present[-1] >= limit:
                raise UserError(
                    f"{pair.label} holds the value {present[-1]}; allowed are 0..{limit - 1} "
                    f"(classes.txt names {limit}), {IGNORE_LABEL}, and the values of --ignore"
                )
            return pair, int(present[-1]) if present.size else -1

        for split in pairs:
            readable = list(self.each(checked, pairs[split], f"checking {split}"))
            pairs[split] = [pair for pair, _ in readable]
            highest = max([highest, *(value for _, value in readable)])
        if highest < 1 and not names:
            raise UserError(
                f"the labels under {source} hold no class but 0, and {IGNORE_LABEL} means "
                "ignored; save them with class ids 0, 1, 2, ... as values"
            )
        self._class_names = names or [f"class_{i}" for i in range(highest + 1)]
        return pairs

    def read_label(self, file: File) -> UInt8[np.ndarray, "H W"]:
        """The values as they are, but for those to ignore."""
        return self._kept[read_values(file)]


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
    names = [line.strip() for line in read_text(_file(path)).rstrip().splitlines()]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            what = f"repeats the name {name!r}" if name else "is empty"
            raise UserError(f"line {number + 1} of {path} {what}; each line has to name one class")
    if not 1 <= len(names) <= IGNORE_LABEL:
        raise UserError(f"{path} names {len(names)} classes; it has to name 1 to {IGNORE_LABEL}")
    return names


def _checked_shares(shares: Mapping[str, float | None]) -> dict[str, float]:
    given = {split: share for split, share in shares.items() if share is not None}
    for split, share in given.items():
        if not 0 < share < 1:
            raise UserError(f"--{split}_share {share}: a share is above 0 and below 1, as 0.1")
    if sum(given.values()) >= 1:
        raise UserError(
            f"{_flags(given)} add up to {sum(given.values()):g}, which leaves no image to train "
            "on; give less than 1 together"
        )
    return given


def _flags(shares: Mapping[str, float]) -> str:
    return " ".join(f"--{split}_share {share}" for split, share in shares.items())


def _find_pairs(source: pathlib.Path, shares: Mapping[str, float]) -> dict[str, list[Pair]]:
    """The images and labels of each split, sorted by name."""
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; --source names the one that holds images/")
    trees = {}
    for kind in ("images", "labels"):
        if not (source / kind).is_dir():
            raise UserError(f"{source} has no folder {kind}/; it needs images/ and labels/")
        trees[kind] = {path.name for path in (source / kind).iterdir() if _is_split(path)}
    there = sorted(filter(_SPLIT_LIKE.fullmatch, trees["images"] | trees["labels"]))
    if shares and there:
        raise UserError(
            f"{source} has splits already, as the folder {there[0]}/ says: leave {_flags(shares)} "
            "out"
        )
    if shares:
        return _share_out(_pair_up(source, ""), shares)
    if not there:
        raise UserError(
            f"{source} has no splits: put its files into images/train/, labels/train/, images/val/ "
            "and so on, or share them out by --val_share 0.1 --test_share 0.1"
        )
    splits = sorted(trees["images"] | trees["labels"] | {"train"}, key=_split_order)
    for split in splits:
        for kind, found in trees.items():
            if split not in found:
                raise UserError(f"{source} has no folder {kind}/{split}/")
        if not re.fullmatch(r"\w*[^\W_]\w*", split) or split == "all":
            raise UserError(
                f"{source}/images/{split}: a split is named by letters, digits and _, but not `all`"
            )
    return {split: _pair_up(source, split) for split in splits}


def _share_out(pairs: Sequence[Pair], shares: Mapping[str, float]) -> dict[str, list[Pair]]:
    """Each split's share of the pairs, and the rest to train on."""
    found: dict[str, list[Pair]] = {split: [] for split in _USUAL_SPLITS if split in shares}
    found = {"train": [], **found}
    for pair in pairs:
        found[_split_of(pair.name, shares)].append(pair)
    for split, members in found.items():
        if not members:
            raise UserError(
                f"{_flags(shares)} of {len(pairs)} images leave none to {split}; give other "
                f"shares, or make the splits yourself, as folders images/{split}/ and "
                f"labels/{split}/"
            )
    return found


def _split_of(name: str, shares: Mapping[str, float]) -> str:
    """The split of an image: of its name and the shares alone, whatever other images there are."""
    # Up to 1, in steps that a float can tell apart. From the two ends, so that another share of
    # one split moves no image of the other.
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
    if place < shares.get("val", 0):
        return "val"
    return "test" if place >= 1 - shares.get("test", 0) else "train"


def _split_order(split: str) -> tuple[int, str]:
    usual = _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS)
    return usual, split


def _is_split(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _pair_up(source: pathlib.Path, split: str) -> list[Pair]:
    """All pairs below the folders of a split, or of a tree without splits where that is ""."""
    images = _by_name(source / "images" / split, IMAGE_SUFFIXES)
    labels = _by_name(source / "labels" / split, LABEL_SUFFIXES)
    if not images and not labels:
        where = source / "images" / split
        raise UserError(f"{where} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            wanted = source / "labels" / split / f"{name}.png"
            raise UserError(f"image {images[name]} has no label; expected {wanted}")
        wanted = source / "images" / split / name
        raise UserError(
            f"label {labels[name]} has no image; expected {wanted}.png, .jpg or the like"
        )
    return [Pair(name, _file(images[name]), _file(labels[name])) for name in sorted(images)]


def _file(path: pathlib.Path) -> File:
    return File.on_disk(path)


def _by_name(root: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Files anywhere under `root`, by their path from there without the suffix."""
    found: dict[str, pathlib.Path] = {}
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or path.suffix.lower() not in suffixes:
            continue
        check_name(str(path))
        name = below.with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {path} have one name; rename or remove one of them")
        found[name] = path
    return found
