"""Builders that convert original files: images and labels are paired, checked and encoded."""

import abc
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tqdm import tqdm

from kdjax.data.preparing import prepared
from kdjax.data.preparing.builder import SegmentationBuilder, encode_png
from kdjax.data.preparing.classes import ClassTable
from kdjax.data.preparing.image_io import DamagedFile, Photo, read_photo, read_text
from kdjax.data.preparing.tree import File, Listing, Tree
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

_PORTION = 64  # images; of Cityscapes, 150 MB

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An image and its label, if it has one: `name` tells them from others of their split."""

    name: str
    image: File
    label: File | None


class ConversionBuilder(SegmentationBuilder, skip_registration=True):
    """A builder whose records come from pairs of files.

    A subclass finds the pairs, before anything is written, and says what the values of a label
    mean; the pairs are converted on all cores.
    """

    # Whether images are turned as their camera noted (EXIF). Labels of a user's photos are drawn on
    # what viewers show; those of published sets belong to the pixels as they are stored.
    UPRIGHT: ClassVar[bool] = False
    # Files that say what the values of labels mean: another state of them means other records.
    tables: Sequence[File] = ()

    def __init__(self, *, source: str, skip_damaged: bool = False, tiles: bool = False, **kwargs):
        """Finds the pairs under `source`, a folder or an archive.

        With `tiles`, records hold images that are no JPEG as PNG tiles, which crops decode in part.

        Raises:
          UserError: files are missing, or there are others than expected.
        """
        self._skip_damaged, self._tiles = skip_damaged, tiles
        self._skipped: set[str] = set()  # splits may share files
        self._pairs = self.find_pairs(pathlib.Path(source))
        super().__init__(**kwargs)

    @abc.abstractmethod
    def find_pairs(self, source: pathlib.Path) -> dict[str, list[Pair]]:
        """The pairs of each split, in the order of their records."""

    @abc.abstractmethod
    def read_label(self, file: File) -> UInt8[np.ndarray, "H W"]:
        """Class ids 0..K-1, and 255 where ignored."""

    @property
    def image_feature(self) -> tfds.features.FeatureConnector:
        """A file, or tiles."""
        image = super().image_feature
        return tfds.features.Sequence(image) if self._tiles else image

    @property
    def skipped(self) -> list[str]:
        """What was left out so far, and why, a line each."""
        return sorted(self._skipped)

    def download_and_prepare(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, **kwargs
    ) -> None:
        """Writes all records; shards that an interrupted call has finished are kept."""
        del kwargs
        self.data_path.mkdir(parents=True, exist_ok=True)
        described = {split: self._write_split(split) for split in self._pairs}
        prepared.write_description(self, described)

    def _write_split(self, split: str) -> list[prepared.Note]:
        pairs, size = self._pairs[split], prepared.SHARD_SIZE
        template = prepared.file_template(self, split)
        count = -(-len(pairs) // size)
        written = []
        for number in range(count):
            path = pathlib.Path(template.sharded_filepath(shard_index=number, num_shards=count))
            part = f"writing {split}, {number + 1} of {count}"
            written.append(self._write_shard(path, pairs[number * size :][:size], part))
        self.require_some([note for note in written if note.examples], split)
        return written

    def require_some(self, readable: Sequence[object], split: str) -> None:
        """Raises a `UserError` if all images of a split were skipped as damaged."""
        if not readable:
            raise UserError(f"no image of split {split} can be read: {self.skipped[0]}")

    def _write_shard(self, path: pathlib.Path, pairs: Sequence[Pair], what: str) -> prepared.Note:
        notes = pathlib.Path(self.data_path).parents[1] / prepared.NOTES
        files = [file for pair in pairs for file in (pair.image, pair.label) if file]
        made_from = prepared.state_of([*files, *self.tables])
        note = prepared.read_note(notes, path.name)
        usable = note and note.made_from == made_from and path.is_file()
        if note and usable and (self._skip_damaged or not note.skipped):
            self._skipped |= set(note.skipped)
            return note
        before, self._skipped = self._skipped, set()
        examples, num_bytes = prepared.write_shard(path, self.each(self._convert, pairs, what))
        note = prepared.Note(made_from, examples, num_bytes, self.skipped)
        self._skipped |= before
        prepared.write_note(notes, path.name, note)
        return note

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        raise NotImplementedError("download_and_prepare writes the records")

    def _generate_examples(self, *args, **kwargs):
        raise NotImplementedError("download_and_prepare writes the records")

    def _convert(self, pair: Pair) -> dict[str, bytes | list[bytes]]:
        photo, label = self.read(pair)
        image = photo.encode_tiles() if self._tiles else photo.encode()
        return {"image": image, "label": encode_png(label), "name": pair.name.encode()}

    def read(self, pair: Pair) -> tuple[Photo, UInt8[np.ndarray, "H W"]]:
        """Decodes both files; without a label, all pixels are ignored.

        Raises:
          UserError: one of them cannot be read or used, or their sizes differ.
        """
        photo = read_photo(pair.image, upright=self.UPRIGHT, for_training=True)
        if pair.label is None:
            return photo, np.full(photo.shape, IGNORE_LABEL, np.uint8)
        label = self.read_label(pair.label)
        if label.shape != photo.shape:
            lying = self.UPRIGHT and label.shape == photo.shape[::-1]
            wanted = "a label has to lie as viewers show the photo, turned by its EXIF note"
            raise UserError(
                f"{pair.label} is {label.shape[1]} x {label.shape[0]} pixels, but {pair.image} "
                f"is {photo.shape[1]} x {photo.shape[0]}{', upright' if self.UPRIGHT else ''}; "
                f"{wanted if lying else 'they have to be of one size'}"
            )
        return photo, label

    def each(
        self, function: Callable[[Pair], _Result], pairs: Sequence[Pair], what: str
    ) -> Iterator[_Result]:
        """Results in the order of `pairs`, less those of damaged files where these are skipped."""

        def attempt(pair: Pair) -> _Result | None:
            try:
                return function(pair)
            except DamagedFile as error:
                if not self._skip_damaged:
                    raise UserError(f"{error}; --skip-damaged leaves such images out") from error
                self._skipped.add(str(error))

        with (
            # Pillow decodes and encodes without holding Python's lock.
            concurrent.futures.ThreadPoolExecutor() as pool,
            # Shown in a terminal only, and gone when done.
            tqdm(
                total=len(pairs), desc=what, unit=" images", leave=False, disable=None
            ) as progress,
        ):
            # In portions: results wait in memory, and a mistake should stop the work soon.
            for start in range(0, len(pairs), _PORTION):
                for result in pool.map(attempt, pairs[start : start + _PORTION]):
                    progress.update()
                    if result is not None:
                        yield result


class PublishedBuilder(ConversionBuilder, skip_registration=True):
    """A builder of a well-known set, whose tree, classes and counts are fixed."""

    CLASSES: ClassVar[ClassTable]
    # Images by split, to tell an incomplete copy by.
    PUBLISHED: ClassVar[Mapping[str, int]]
    # What --source should be, for messages.
    SOURCE: ClassVar[str]

    @property
    def classes(self) -> ClassTable:
        """The classes of this builder."""
        return self.CLASSES

    @property
    def class_names(self) -> list[str]:
        """As the table of classes has them."""
        return self.classes.names

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """The colours that the set's authors or its users have agreed on."""
        return self.classes.palette

    @property
    def findings(self) -> list[str]:
        """How many images each split has, beside the number that was published."""
        lines = []
        for split, published in self.PUBLISHED.items():
            found = len(self._pairs.get(split, ()))
            line = f"{split}: {found:,} images"
            lines.append(line if found == published else f"{line}, but {published:,} are published")
        return lines

    def find_pairs(self, source: pathlib.Path) -> dict[str, list[Pair]]:
        """The pairs of each split, from a folder or from archives."""
        return self.pairs_in(Tree(source, self.SOURCE))

    @abc.abstractmethod
    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """The pairs of each split, in the order of their records."""


def pair_up(images: Listing, labels: Listing) -> list[Pair]:
    """Images and labels of the same names, all of them.

    Raises:
      UserError: one has no partner.
    """
    for name in sorted(images.files.keys() ^ labels.files.keys()):
        there, missing = (images, labels) if name in images.files else (labels, images)
        kind = "label" if there is images else "image"
        raise UserError(
            f"{there.files[name]} has no {kind}: there is no {name}{missing.suffix} "
            f"in {missing.where}"
        )
    return [Pair(name, images.files[name], labels.files[name]) for name in images.files]


def pair_listed(
    names: Iterable[str], images: Listing, labels: Listing, named_by: File | str
) -> list[Pair]:
    """The pairs of `names`, in that order.

    Raises:
      UserError: a file is missing.
    """
    pairs = []
    for name in names:
        for kind, listing in (("image", images), ("label", labels)):
            if name not in listing.files:
                raise UserError(
                    f"{kind} {name}{listing.suffix}, which {named_by} names, is not in "
                    f"{listing.where}"
                )
        pairs.append(Pair(name, images.files[name], labels.files[name]))
    return pairs


def read_split(lists: Listing, split: str) -> list[str]:
    """The names in the list of `split`, which is a file among `lists`.

    Raises:
      UserError: there is no such list, it is empty, or not UTF-8.
    """
    if split not in lists.files:
        raise UserError(f"there is no {split}{lists.suffix} in {lists.where}; it lists the images")
    names = read_text(lists.files[split]).split()
    if not names:
        raise UserError(f"{lists.files[split]} is empty; it should list the images of {split}")
    return names
