"""Base classes of builders that convert pairs of an image and a label."""

import abc
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tqdm import tqdm

from kdjax.data.preparing.band_files import BandImage
from kdjax.data.preparing.builder import SegmentationBuilder
from kdjax.data.preparing.classes import ClassTable
from kdjax.data.preparing.image_io import DamagedFile, Photo, encode_png, read_photo, read_text
from kdjax.data.preparing.tree import Listing, Tree
from kdjax.utils.bands import RGB
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

_PORTION = 64  # images; 150 MB of Cityscapes

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An image and its label, if it has one. The `name` is unique in its split."""

    name: str
    image: pathlib.Path
    label: pathlib.Path | None


class ConversionBuilder(SegmentationBuilder, skip_registration=True):
    """A builder whose records come from pairs of files.

    A subclass finds the pairs and reads the labels. The pairs are converted on all cores.
    """

    # Whether images are turned by their EXIF orientation. Users draw labels on what viewers show;
    # the labels of published sets belong to the pixels as stored.
    UPRIGHT: ClassVar[bool] = False

    def __init__(
        self,
        *,
        source: str,
        data_dir: Any,
        skip_damaged: bool = False,
        tiles: bool = False,
        **kwargs,
    ):
        """Finds the pairs under `source`, a folder or an archive.

        Args:
          source: where the original files are.
          data_dir: the folder to write to.
          skip_damaged: whether files that cannot be read are skipped.
          tiles: whether records hold images as PNG tiles, which crops decode in part. A JPEG of
            less than two megapixels stays one file.
          **kwargs: for TFDS.
        """
        self._skip_damaged, self._tiles = skip_damaged, tiles
        self._skipped: set[str] = set()  # splits may share files
        self._scratch = pathlib.Path(data_dir) / "unpacked"
        self._pairs = self.find_pairs(pathlib.Path(source))
        super().__init__(data_dir=data_dir, **kwargs)

    @abc.abstractmethod
    def find_pairs(self, source: pathlib.Path) -> dict[str, list[Pair]]:
        """Returns the pairs of each split in the order of their records."""

    @abc.abstractmethod
    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Returns class ids 0..K-1, and 255 for ignored pixels."""

    @property
    def image_feature(self) -> tfds.features.FeatureConnector:
        """Returns the image as one file, or as tiles."""
        image = super().image_feature
        return tfds.features.Sequence(image) if self._tiles and self.bands == RGB else image

    @property
    def skipped(self) -> list[str]:
        """A line for each file that was skipped."""
        return sorted(self._skipped)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self._pairs}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        examples = self.each(self._convert, self._pairs[split], f"writing {split}")
        yield from enumerate(self.require_some(examples, split))

    def require_some(self, readable: Iterable[_Result], split: str) -> Iterator[_Result]:
        """Yields `readable`."""
        empty = True
        for item in readable:
            empty = False
            yield item
        if empty:
            raise UserError(f"no image of split {split} can be read: {self.skipped[0]}")

    def _convert(self, pair: Pair) -> dict[str, Any]:
        photo, label = self.read(pair)
        image = photo.encode_tiles() if self._tiles else photo.encode()
        return {"image": image, "label": encode_png(label), "name": pair.name}

    def read_image(self, path: pathlib.Path) -> Photo | BandImage:
        """Decodes an image."""
        return read_photo(path, upright=self.UPRIGHT, for_training=True)

    def read(self, pair: Pair) -> tuple[Photo | BandImage, UInt8[np.ndarray, "H W"]]:
        """Decodes an image and its label. Without a label, all pixels are ignored.

        Raises:
          UserError: if a file cannot be read or used, or their sizes differ.
        """
        photo = self.read_image(pair.image)
        if pair.label is None:
            return photo, np.full(photo.shape, IGNORE_LABEL, np.uint8)
        label = self.read_label(pair.label)
        if label.shape != photo.shape:
            turned = self.UPRIGHT and label.shape == photo.shape[::-1]
            wanted = "a label has to match the photo turned by its EXIF orientation"
            raise UserError(
                f"{pair.label} is {label.shape[1]} x {label.shape[0]} pixels, but {pair.image} "
                f"is {photo.shape[1]} x {photo.shape[0]}{', upright' if self.UPRIGHT else ''}; "
                f"{wanted if turned else 'they must have the same size'}"
            )
        return photo, label

    def each(
        self, function: Callable[[Pair], _Result], pairs: Sequence[Pair], what: str
    ) -> Iterator[_Result]:
        """Yields the results in the order of `pairs`, except for skipped damaged files."""

        def attempt(pair: Pair) -> _Result | None:
            try:
                return function(pair)
            except DamagedFile as error:
                if not self._skip_damaged:
                    raise UserError(f"{error}; --skip-damaged leaves such images out") from error
                self._skipped.add(str(error))

        with (
            # Pillow releases Python's lock while it decodes and encodes.
            concurrent.futures.ThreadPoolExecutor() as pool,
            tqdm(
                total=len(pairs), desc=what, unit=" images", leave=False, disable=None
            ) as progress,
        ):
            # In portions, because results wait in memory, and a mistake should stop the work soon.
            for start in range(0, len(pairs), _PORTION):
                for result in pool.map(attempt, pairs[start : start + _PORTION]):
                    progress.update()
                    if result is not None:
                        yield result


class PublishedBuilder(ConversionBuilder, skip_registration=True):
    """A builder of a well-known set, with a fixed tree, classes, and counts."""

    CLASSES: ClassVar[ClassTable]
    # The published number of images by split, to recognize an incomplete copy.
    PUBLISHED: ClassVar[Mapping[str, int]]
    # What --source should be, for messages.
    SOURCE: ClassVar[str]

    @property
    def classes(self) -> ClassTable:
        """The classes of this builder."""
        return self.CLASSES

    @property
    def class_names(self) -> list[str]:
        """The names in the class table."""
        return self.classes.names

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """The colors in the class table."""
        return self.classes.palette

    @property
    def findings(self) -> list[str]:
        """The number of images of each split, compared with the published one."""
        lines = []
        for split, published in self.PUBLISHED.items():
            found = len(self._pairs.get(split, ()))
            line = f"{split}: {found:,} images"
            lines.append(line if found == published else f"{line}, but {published:,} are published")
        return lines

    def find_pairs(self, source: pathlib.Path) -> dict[str, list[Pair]]:
        """Returns the pairs of each split, from a folder or from archives."""
        return self.pairs_in(Tree(source, self.SOURCE, self._scratch))

    @abc.abstractmethod
    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Returns the pairs of each split in the order of their records."""


def pair_up(images: Listing, labels: Listing) -> list[Pair]:
    """Pairs all images and labels by name."""
    for name in sorted(images.files.keys() ^ labels.files.keys()):
        there, missing = (images, labels) if name in images.files else (labels, images)
        kind = "label" if there is images else "image"
        raise UserError(
            f"{there.files[name]} has no {kind}: there is no {name}{missing.suffix} "
            f"in {missing.folder}"
        )
    return [Pair(name, images.files[name], labels.files[name]) for name in images.files]


def pair_listed(
    names: Iterable[str], images: Listing, labels: Listing, named_by: pathlib.Path
) -> list[Pair]:
    """Returns the pairs of `names`, in that order."""
    pairs = []
    for name in names:
        for kind, listing in (("image", images), ("label", labels)):
            if name not in listing.files:
                raise UserError(
                    f"{kind} {name}{listing.suffix}, which {named_by} names, is not in "
                    f"{listing.folder}"
                )
        pairs.append(Pair(name, images.files[name], labels.files[name]))
    return pairs


def read_split(lists: Listing, split: str) -> list[str]:
    """Returns the names in the list of `split`, a file among `lists`."""
    if split not in lists.files:
        raise UserError(f"there is no {split}{lists.suffix} in {lists.folder}; it lists the images")
    names = read_text(lists.files[split]).split()
    if not names:
        raise UserError(f"{lists.files[split]} is empty; it should list the images of {split}")
    return names
