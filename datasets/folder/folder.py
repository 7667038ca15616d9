"""Builder of `folder`: a user's images and labels, in two trees of the same shape."""

import functools
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.band_files import (
    IMAGE_SUFFIXES,
    PHOTO,
    BandImage,
    Form,
    form_of,
    read_bands,
)
from kdjax.data.preparing.class_tables import label_reader
from kdjax.data.preparing.coco import BACKGROUND, FILE, CocoLabels, annotation_files
from kdjax.data.preparing.conversion import ConversionBuilder, Pair
from kdjax.data.preparing.image_io import SUFFIXES, Photo
from kdjax.data.preparing.shrinking import shrink
from kdjax.data.preparing.tree import check_name
from kdjax.utils.bands import RGB, Bands, BandSums, check_rgb
from kdjax.utils.classes import IGNORE_LABEL, UNLABELLED, distinct_colors
from kdjax.utils.errors import UserError

# What tools append to the name of an image to name its label.
_LABEL_ENDINGS = (
    *("_mask", "_label", "_labels", "_gt", "_seg", "_L", "_labelIds", "_labelTrainIds"),
    *SUFFIXES,
)
_VAL_SHARE = 0.2  # of a tree without splits, if no option gives a share

_USUAL_SPLITS = ("train", "val", "test")  # before others in the order of splits
# Folders that are splits. If there is one, images are not split by shares.
_SPLIT_LIKE = re.compile("train|training|val|valid|validation|test|testing", re.IGNORECASE)


class Folder(ConversionBuilder):
    """Images under `images/<split>`, labels of the same names under `labels/<split>`.

    Or under `images` and `labels` alone. Then `val_share` and `test_share` are the shares of images
    to validate and test on, chosen by a hash of their names. Without shares, a fifth is `val`.

    Everything is checked before anything is written. Labels hold class ids, or values or colors
    that a table names (`kdjax.data.preparing.class_tables`). Without a table, the largest id gives
    the number of classes.

    In place of `labels`, COCO's `annotations.json`, or `annotations/<split>.json`, may contain
    polygons and run-length encoded masks.

    With `unlabelled`, the source or its folder `images` holds images alone. All are `train` unless
    there are folders of splits or shares, and all of their pixels are ignored.

    Images are photos, or all have the same bands: TIFF files of 1 to 16 bands, 16-bit PNG files, or
    NumPy files. Bands keep their numbers, and their statistics are measured on `train`.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        *("ignore", "ignore_unknown", "colors", "val_share", "test_share", "unlabelled"),
        *("rgb", "max_side"),
    )
    UPRIGHT: ClassVar[bool] = True

    def __init__(
        self,
        *,
        ignore: Sequence[int | str] = (),
        ignore_unknown: bool = False,
        colors: str | None = None,
        val_share: float | None = None,
        test_share: float | None = None,
        unlabelled: bool = False,
        rgb: Sequence[int] = (),
        max_side: int | None = None,
        **kwargs,
    ):
        """Checks the tree.

        Args:
          ignore: what becomes 255: label values, class names, and colors such as "#000000".
          ignore_unknown: whether unknown values and colors become 255 too.
          colors: a table of class colors.
          val_share: the share of images to validate on, in a tree without splits.
          test_share: the share of images to test on, in a tree without splits; 1 for all.
          unlabelled: whether there are images alone. Excludes the options on labels.
          rgb: the bands that stand for red, green, and blue; the first three by default.
          max_side: images with a longer side are made smaller, so that it has this many pixels.
          **kwargs: options of `ConversionBuilder`.

        Raises:
          UserError: if files are missing or wrong, or an option is invalid.
        """
        self._shares = _checked_shares({"val": val_share, "test": test_share})
        self._options = {"ignore": ignore, "ignore_unknown": ignore_unknown, "colors": colors}
        self._unlabelled = unlabelled
        self._rgb, self._max_side = tuple(rgb), max_side
        if max_side is not None and max_side < 1:
            raise UserError(f"--max_side {max_side}: give a number of pixels, as 2000")
        given = [name for name, value in self._options.items() if value]
        if unlabelled and given:
            raise UserError(f"--unlabelled takes images alone; leave --{given[0]} out")
        self._findings: list[str] = []
        super().__init__(**kwargs)

    @property
    def findings(self) -> list[str]:
        """Remarks on images without labels, and on the default choice of validation images."""
        return self._findings

    @property
    def class_names(self) -> list[str]:
        """The names in a table, or `class_0` and so on."""
        return self._class_names

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """The colors in a table, and distinct colors for the other classes."""
        palette = distinct_colors(len(self.class_names))
        for number, name in enumerate(self.class_names):
            palette[number] = self._colors.get(name, palette[number])
        return palette

    @property
    def bands(self) -> Bands:
        """The bands of the images, measured on the split `train`, or else on all splits."""
        return self._bands

    def find_pairs(self, source: pathlib.Path) -> dict[str, list[Pair]]:
        """Returns the pairs of each split, sorted by name, after reading each once."""
        if self._unlabelled:
            pairs = _find_unlabelled(source, self._shares)
            self._class_names, self._colors = [UNLABELLED], {}
            self._find_form(pairs)
            self._find_ids(pairs)
            counts = ", ".join(f"{len(found)} of {split}" for split, found in pairs.items())
            self._findings.append(
                f"{source}: images without labels, {counts}; train on them with a teacher alone "
                "(configs/from_teacher.py), or beside labeled images, by config.data.mixture "
                "with labelled=False"
            )
            return pairs
        annotations = self._annotations(source)
        pairs = self._find_splits(source, annotations)
        self._reader = annotations or label_reader(source, **self._options)
        self._colors = self._reader.palette
        self._find_form(pairs)
        found = self._find_ids(pairs)
        highest = max(found - {IGNORE_LABEL}, default=-1)
        names = self._reader.names
        absent = [name for number, name in enumerate(names) if number not in found]
        if absent and IGNORE_LABEL in found and not self._reader.ignores:
            raise UserError(
                f"the labels under {source} hold the value {IGNORE_LABEL} and nothing of the class "
                f"{absent[0]!r}: if {IGNORE_LABEL} is a class, name the values in a classes.csv "
                f"with the heading value,name; if it means ignored, add --ignore {IGNORE_LABEL}"
            )
        if highest < 1 and not names:
            raise UserError(
                f"the labels under {source} hold no class but 0, and {IGNORE_LABEL} means "
                "ignored; save them with class ids 0, 1, 2, ... as values, or name their values in "
                "a classes.csv with columns value,name"
            )
        self._class_names = names or [f"class_{i}" for i in range(highest + 1)]
        return pairs

    def _find_form(self, pairs: Mapping[str, Sequence[Pair]]) -> None:
        """Takes the form of the first image for that of all."""
        first = next(iter(pairs.values()))[0].image
        self._form: Form = form_of(first)
        if self._form == PHOTO:
            if self._rgb:
                raise UserError(f"--rgb is for images of several bands, and {first} is a photo")
            return
        if self._rgb:
            check_rgb(self._rgb, self._form.channels, "--rgb")
        self._findings.append(
            f"{first} has {self._form}: all images must have them, and keep their numbers"
        )

    def _find_ids(self, pairs: dict[str, list[Pair]]) -> set[int]:
        """Returns the class ids, and 255, in all labels. Removes pairs with damaged files.

        Also measures the bands.
        """
        measured = ("train",) if "train" in pairs else tuple(pairs)
        photos = self._form == PHOTO

        def checked(pair: Pair, split: str) -> tuple[Pair, list[int], BandSums | None]:
            image, label = self.read(pair)
            sums = None
            if isinstance(image, BandImage) and split in measured:
                sums = BandSums(self._form.channels)
                sums.add(image.pixels)
            return pair, np.unique(label).tolist(), sums

        found: set[int] = set()
        total = BandSums(self._form.channels)
        for split in pairs:
            check = functools.partial(checked, split=split)
            results = self.each(check, pairs[split], f"checking {split}")
            readable = list(self.require_some(results, split))
            pairs[split] = [pair for pair, _, _ in readable]
            found.update(*(ids for _, ids, _ in readable))
            for _, _, sums in readable:
                if sums:
                    total.join(sums)
        self._bands = RGB if photos else total.bands(self._form.dtype, self._rgb)
        return found

    def read_image(self, path: pathlib.Path) -> Photo | BandImage:
        """Decodes an image of the form of the first one."""
        return super().read_image(path) if self._form == PHOTO else read_bands(path, self._form)

    def read(self, pair: Pair) -> tuple[Photo | BandImage, UInt8[np.ndarray, "H W"]]:
        """Decodes an image and its label, and makes both smaller if `max_side` asks for it."""
        image, label = super().read(pair)
        if self._max_side is None or max(label.shape) <= self._max_side:
            return image, label
        return shrink(image, label, self._max_side)

    def _annotations(self, source: pathlib.Path) -> CocoLabels | None:
        """Returns the labels in COCO's annotation files, if there are any next to the images."""
        files = annotation_files(source)
        if not files:
            return None
        for option in ("colors", "ignore_unknown"):
            if self._options[option]:
                raise UserError(
                    f"{source} has COCO annotations without colors; leave --{option} out"
                )
        self._findings.append(
            f"{source}: labels are drawn from {', '.join(path.name for path in files.values())}; "
            f"pixels without a mask are the class {BACKGROUND} (--ignore {BACKGROUND} ignores them)"
        )
        return CocoLabels(files, self._options["ignore"])

    def _find_splits(
        self, source: pathlib.Path, annotations: CocoLabels | None
    ) -> dict[str, list[Pair]]:
        """Returns the pairs of each split, from folders of splits or by shares."""

        def pair_up(split: str) -> list[Pair]:
            if annotations is None:
                return _pair_up(source, split)
            images = _by_name(source / "images" / split, IMAGE_SUFFIXES)
            if not images:
                raise _no_images(source / "images" / split)
            return annotations.pair_up(source / "images", split, images)

        kinds = ("images",) if annotations else ("images", "labels")
        if splits := _find_splits(source, self._shares, kinds):
            found = {split: pair_up(split) for split in splits}
            if annotations:
                annotations.check_found([pair for pairs in found.values() for pair in pairs])
            return found
        pairs = pair_up("")
        if annotations:
            annotations.check_found(pairs)
        shared_out = _share_out(pairs, self._shares or {"val": _VAL_SHARE})
        if not self._shares:
            self._findings.append(
                f"{source} has no folders train/ and val/: {len(shared_out['val'])} of its "
                f"{len(pairs)} images, chosen by their names, are the split val, as with "
                f"--val_share {_VAL_SHARE}; --val_share 0.1 --test_share 0.1 gives a test split too"
            )
        return shared_out

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Returns class ids from the values or colors of the label."""
        return self._reader(path)


def _checked_shares(shares: Mapping[str, float | None]) -> dict[str, float]:
    given = {split: share for split, share in shares.items() if share is not None}
    if given == {"test": 1}:
        return given
    for split, share in given.items():
        if not 0 < share < 1:
            raise UserError(
                f"--{split}_share {share}: a share is above 0 and below 1, as 0.1; --test_share 1 "
                "alone makes a set that only scores networks"
            )
    if sum(given.values()) >= 1:
        raise UserError(
            f"{_flags(given)} add up to {sum(given.values()):g}, which leaves no image to train "
            "on; give less than 1 together"
        )
    return given


def _flags(shares: Mapping[str, float]) -> str:
    return " ".join(f"--{split}_share {share}" for split, share in shares.items())


def _find_splits(
    source: pathlib.Path, shares: Mapping[str, float], kinds: Sequence[str]
) -> list[str]:
    """Returns the splits that have folders of all kinds, or none for a tree without splits."""
    _check_source(source)
    trees = {}
    for kind in kinds:
        if not (source / kind).is_dir():
            raise UserError(
                f"{source} has no folder {kind}/; it needs images/ and labels/ (or COCO's {FILE}), "
                "or --unlabelled if there are images alone"
            )
        trees[kind] = {path.name for path in (source / kind).iterdir() if _is_split(path)}
    folders = set[str]().union(*trees.values())
    there = sorted(filter(_SPLIT_LIKE.fullmatch, folders))
    if not there:
        return []
    if shares:
        raise UserError(
            f"{source} has splits already, such as the folder {there[0]}/: leave {_flags(shares)} "
            "out"
        )
    splits = sorted(folders | {"train"}, key=_split_order)
    for split in splits:
        for kind, found in trees.items():
            if split not in found:
                raise UserError(f"{source} has no folder {kind}/{split}/")
        _check_split(source / "images" / split)
    return splits


def _find_unlabelled(source: pathlib.Path, shares: Mapping[str, float]) -> dict[str, list[Pair]]:
    """Returns images alone: by folder if there is a folder `train`, else by shares."""
    _check_source(source)
    if (source / "labels").is_dir():
        raise UserError(
            f"{source} has a folder labels/, which --unlabelled ignores: leave that out, or "
            f"name the images alone, as --source {source / 'images'}"
        )
    root = source / "images" if (source / "images").is_dir() else source
    folders = {"train": root}
    if (root / "train").is_dir():
        folders = {path.name: path for path in root.iterdir() if _is_split(path)}
        for path in folders.values():
            _check_split(path)
        if shares:
            raise UserError(
                f"{source} has splits already, as the folder train/: leave {_flags(shares)} out"
            )
    found = {}
    for split in sorted(folders, key=_split_order):
        images = _by_name(folders[split], IMAGE_SUFFIXES)
        if not images:
            raise _no_images(folders[split])
        found[split] = [Pair(name, images[name], None) for name in sorted(images)]
    return _share_out(found["train"], shares) if shares else found


def _check_source(source: pathlib.Path) -> None:
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; --source names the one that holds images/")


def _check_split(folder: pathlib.Path) -> None:
    if not re.fullmatch(r"\w*[^\W_]\w*", folder.name) or folder.name == "all":
        raise UserError(f"{folder}: a split is named by letters, digits and _, but not `all`")


def _no_images(folder: pathlib.Path) -> UserError:
    return UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")


def _share_out(pairs: Sequence[Pair], shares: Mapping[str, float]) -> dict[str, list[Pair]]:
    """Returns the pairs of each split. Those in no share are `train`."""
    if shares == {"test": 1}:
        return {"test": [*pairs]}
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
    """Returns the split of an image, which depends on its name and the shares alone."""
    # 48 bits fit a float. The splits start from both ends, so that changing the share of one moves
    # no image of the other.
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
    """Returns all pairs of a split, or of a tree without splits if `split` is ""."""
    images = _by_name(source / "images" / split, IMAGE_SUFFIXES)
    labels: dict[str, pathlib.Path] = {}
    for named, path in _by_name(source / "labels" / split, SUFFIXES).items():
        bare = (named.removesuffix(ending) for ending in ("", *_LABEL_ENDINGS))
        name = next((name for name in bare if name in images), named)
        if name in labels:
            raise UserError(f"{labels[name]} and {path} are labels of one image; remove one")
        labels[name] = path
    if not images and not labels:
        raise _no_images(source / "images" / split)
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            wanted = source / "labels" / split / f"{name}.png"
            raise UserError(
                f"image {images[name]} has no label; expected {wanted} (prepare images without "
                "labels as another set, with --unlabelled)"
            )
        wanted = source / "images" / split / name
        raise UserError(
            f"label {labels[name]} has no image; expected {wanted}.png, .jpg or the like"
        )
    return [Pair(name, images[name], labels[name]) for name in sorted(images)]


def _by_name(root: pathlib.Path, suffixes: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns the images under `root` by their path below it, without the suffix."""
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
