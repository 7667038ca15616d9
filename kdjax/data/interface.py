"""The type of an open data set."""

from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    from kdjax.data.dataset import Dataset
    from kdjax.data.preparing.prepared import PreparedSet

# Both have `name`, `class_names`, `palette`, `fingerprint`, `splits`, and `records(split)`.
SegmentationSet: TypeAlias = Union["Dataset", "PreparedSet"]
