"""The section `config.data` of a config."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from kdjax.utils import schema
from kdjax.utils.errors import WrongValue
from kdjax.utils.schema import Section


@dataclasses.dataclass(frozen=True)
class ExtraSet(Section):
    """An additional set to train on, an entry of `config.data.mixture`."""

    name: str = ""
    data_dir: str = "data"  # the folder of prepared sets
    split: str = "train"
    # The number of its examples for every `config.data.weight` examples of the main set.
    weight: Annotated[int, schema.COUNT] = 1
    labelled: bool = True  # False to ignore its labels, whose classes may then differ


@dataclasses.dataclass(frozen=True)
class CropOptions(Section):
    """The augmentations in `config.data`."""

    # Height and width in pixels. A smaller scaled image is padded below and on the right.
    crop_size: Annotated[tuple[int, int], schema.PIXELS] = (96, 96)
    # The range of the random factor by which the image is scaled first.
    scale_range: Annotated[tuple[float, float], schema.POSITIVE] = (0.5, 2.0)
    # The long and the short side of the box into which the image is fitted before scaling, as in
    # mmsegmentation's RandomResize(scale=(2048, 512)); () to keep the size of the image.
    base_size: Annotated[tuple[int, int] | tuple[()], schema.COUNT] = ()
    # A crop is drawn again, up to ten times, while one class covers at least this share of its
    # labeled pixels. 1.0 takes the first crop.
    max_class_share: Annotated[float, schema.SHARE_ABOVE_ZERO] = 0.75
    flip: bool = True  # mirror each crop left to right with probability 0.5
    photometric: bool = True  # change brightness, contrast, saturation and hue
    # The share of crops that are drawn by class: first a class, all with the same probability, then
    # an image that contains it, then a crop around one of its pixels. See docs/rare_classes.md.
    class_uniform: Annotated[float, schema.SHARE] = 0.0

    def __post_init__(self) -> None:
        """Checks the pairs of numbers too."""
        super().__post_init__()
        for key in ("crop_size", "scale_range", "base_size"):
            if len(value := getattr(self, key)) != 2 and not (key == "base_size" and not value):
                raise WrongValue(key, f"is {value}; it must be two positive numbers")
        if self.base_size and self.base_size[0] < self.base_size[1]:
            raise WrongValue("base_size", f"is {self.base_size}; the long side is first")
        low, high = self.scale_range
        if low > high:
            raise WrongValue("scale_range", f"is {low, high}; the first must not be larger")


def fitted_size(size: tuple[int, int], base_size: tuple[int, ...]) -> tuple[int, int]:
    """Returns height and width of an image that is fitted into `base_size`, as before scaling."""
    if not base_size:
        return size
    long, short = max(size), min(size)
    to_long, to_short = base_size
    target, side = (to_long, long) if to_long * short < to_short * long else (to_short, short)
    height, width = (max((2 * pixels * target + side) // (2 * side), 1) for pixels in size)
    return height, width


@dataclasses.dataclass(frozen=True)
class DataOptions(CropOptions):
    """`config.data`: the examples and their augmentation."""

    # A prepared set, or "package.module:attribute" of a TFDS builder class, a kdjax.data.Dataset,
    # or a function that returns one.
    name: str = "shapes"
    # Arguments of such a function.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_dir: str = "data"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = ""  # evaluated once, at the end; empty for none
    # The folder that holds the set of `test_split`; empty for `data_dir`. A student that learns
    # without labels can be scored on labeled images in this way.
    test_data_dir: str = ""
    # Groups of test images: a regular expression on their names for each group.
    test_groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    batch_size: Annotated[int, schema.COUNT] = 16  # of all devices together
    eval_batch_size: Annotated[int, schema.COUNT] = 16
    cache: Literal["none", "host", "device", "auto"] = "auto"  # memory for decoded examples
    # Pads whole images to a multiple of this; 1 pads nothing.
    eval_pad_to: Annotated[int, schema.PIXELS] = 1
    weight: Annotated[int, schema.COUNT] = 1  # of this set in a mixture
    # Additional sets to train on, by any key: kdjax.config.extra_set(...).
    mixture: Mapping[str, ExtraSet] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the regular expressions too."""
        super().__post_init__()
        for name, expression in self.test_groups.items():
            schema.check_expression(f"test_groups.{name}", expression)
