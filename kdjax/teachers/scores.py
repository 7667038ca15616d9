"""Class scores of whole images: in few bytes, in files, and seen where crops show them.

The files are flat, mapped into memory and read by the index of an image:

DIR/cache.json    what the scores are of; written last
DIR/sizes.npy     int32 [N, 2], height and width of every image's map
DIR/NAME.npy      an array of `score_layout`: the cells of all maps, one after the other;
                  bfloat16 as uint16, which `numpy.load` knows
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.distillation import Maps
from kdjax.distillation.feature_maps import array_of
from kdjax.losses import sampling_weights
from kdjax.utils.errors import UserError


def score_layout(num_classes: int, keep: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The arrays that `compact_scores` makes, by name: what each holds of a cell, and its type.

    Args:
      num_classes: K.
      keep: how many of the highest scores are kept; 0 for all.
    """
    half = np.dtype(jnp.bfloat16)
    if keep == 0:
        return {"scores": ((num_classes,), half)}
    number = np.dtype(np.uint8 if num_classes <= 256 else np.uint16)
    return {"highest": ((keep,), half), "classes": ((keep,), number), "rest": ((), half)}


def compact_scores(logits: Float[Array, "... K"], keep: int) -> dict[str, Array]:
    """Makes the arrays of `score_layout` from class scores.

    The rest is its log-mean-exp: given to every class that is not kept, it leaves the kept ones
    their probabilities, and the others together theirs.
    """
    num_classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    types = {name: kind for name, (_, kind) in score_layout(num_classes, keep).items()}
    if keep == 0:
        return {"scores": logits.astype(types["scores"])}
    highest, classes = jax.lax.top_k(logits, keep)
    others = jnp.put_along_axis(logits, classes, -jnp.inf, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1) - jnp.log(num_classes - keep)
    found = {"highest": highest, "classes": classes, "rest": rest}
    return {name: value.astype(types[name]) for name, value in found.items()}


def expand_scores(compacted: Mapping[str, Array], num_classes: int) -> Float[Array, "... K"]:
    """Class scores again, in bfloat16, from what `compact_scores` made."""
    if "scores" in compacted:
        return compacted["scores"]
    rest = compacted["rest"]
    scores = jnp.broadcast_to(rest[..., None], (*rest.shape, num_classes))
    return jnp.put_along_axis(
        scores, compacted["classes"].astype(jnp.int32), compacted["highest"], -1, inplace=False
    )


_DESCRIPTION = "cache.json"
_HALF = np.dtype(jnp.bfloat16)


class ScoreFiles:
    """Open files of scores.

    Args:
      path: their directory.
      num_classes: K.
      keep: how many of the highest scores were kept; 0 for all.

    Raises:
      UserError: a file is missing, or is not what the others say.
    """

    def __init__(self, path: pathlib.Path, num_classes: int, keep: int):
        self.num_classes = num_classes
        try:
            self._sizes = np.load(path / "sizes.npy")
            self._ends = np.cumsum(self._sizes.prod(1, dtype=np.int64))
            self._arrays = {}
            for name, (shape, kind) in score_layout(num_classes, keep).items():
                array = np.load(path / f"{name}.npy", mmap_mode="r")
                if array.shape != (self._ends[-1], *shape) or array.dtype != _stored(kind):
                    raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}")
                self._arrays[name] = array.view(kind)
        except (OSError, ValueError, IndexError) as error:
            raise UserError(
                f"config.teacher.cache {path} is damaged ({error}); remove it, and it is made again"
            ) from error

    @property
    def num_bytes(self) -> int:
        """What the scores take on disk."""
        return sum(array.nbytes for array in self._arrays.values())

    def rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads the maps of the images at `indices`, `[B]`.

        Returns:
          `size`, int32 `[B, 2]`; and each array of the layout, `[B, H, W, ...]`, zero beyond an
          image's size. H and W are those of the largest map, so that all batches have one shape.
        """
        chosen = list(indices)
        found = {
            name: np.zeros((len(chosen), *self._sizes.max(0), *array.shape[1:]), array.dtype)
            for name, array in self._arrays.items()
        }
        for row, index in enumerate(chosen):
            height, width = self._sizes[index]
            end = self._ends[index]
            for name, array in self._arrays.items():
                cells = array[end - int(height) * int(width) : end]
                found[name][row, :height, :width] = cells.reshape(height, width, *cells.shape[1:])
        return {"size": self._sizes[chosen], **found}


def read_description(path: pathlib.Path) -> dict[str, Any] | None:
    """What the scores in `path` are of, as `write_scores` was told; None where there are none."""
    try:
        return json.loads((path / _DESCRIPTION).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path / _DESCRIPTION} is damaged: {error}") from error


def num_bytes(sizes: np.ndarray, num_classes: int, keep: int) -> int:
    """What the scores of maps of these sizes, `[N, 2]`, take on disk."""
    of_a_cell = sum(
        int(np.prod(shape)) * kind.itemsize
        for shape, kind in score_layout(num_classes, keep).values()
    )
    return int(sizes.prod(1, dtype=np.int64).sum()) * of_a_cell


def write_scores(
    path: pathlib.Path,
    description: Mapping[str, Any],
    sizes: np.ndarray,
    maps: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    *,
    num_classes: int,
    keep: int,
) -> None:
    """Writes scores to a folder beside `path`, which gets that name when it is complete.

    Args:
      path: the directory; missing or empty.
      description: what the scores are of.
      sizes: int32 `[N, 2]`, height and width of every map.
      maps: of every image once, in any order, its index and its arrays `[H, W, ...]`.
      num_classes: K.
      keep: how many of the highest scores are kept; 0 for all.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    unfinished.mkdir()
    try:
        ends = np.cumsum(sizes.prod(1, dtype=np.int64))
        files = {
            name: np.lib.format.open_memmap(
                unfinished / f"{name}.npy", "w+", _stored(kind), (int(ends[-1]), *shape)
            )
            for name, (shape, kind) in score_layout(num_classes, keep).items()
        }
        for index, arrays in maps:
            for name, file in files.items():
                cells = arrays[name].reshape(-1, *file.shape[1:])
                file[ends[index] - len(cells) : ends[index]] = cells.view(file.dtype)
        for file in files.values():
            file.flush()
        np.save(unfinished / "sizes.npy", sizes)
        (unfinished / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _stored(kind: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if kind == _HALF else kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedScores:
    """The scores of a batch's images, as `kdjax.training.step.make_train_step` takes them.

    Attributes:
      scores: as `sample_scores` takes them, and so the following.
      sizes: likewise.
      places: likewise.
      crop_size: likewise.
    """

    scores: Float[Array, "B H W K"]
    sizes: Int[Array, "B 2"]
    places: Int[Array, "B 5"]
    crop_size: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def like(self, student: Maps) -> Maps:
        """The scores on the crops, on the grid of the student's."""
        grid = array_of(student["logits"]).shape[1:3]
        return {"logits": sample_scores(self.scores, self.sizes, self.places, self.crop_size, grid)}


def sample_scores(
    scores: Float[Array, "B H W K"],
    sizes: Int[Array, "B 2"],
    places: Int[Array, "B 5"],
    crop_size: tuple[int, ...],
    grid: tuple[int, ...],
) -> Float[Array, "B h w K"]:
    """Samples maps of whole images bilinearly at the centres of the cells of their crops.

    Of a crop that is the whole image, unscaled and not mirrored, this is the map resized to `grid`
    without antialiasing, as `kdjax.models.layers.resize` does it.

    Args:
      scores: a map of every image, zero beyond its own size.
      sizes: height and width of each map without that padding.
      places: of every crop, as `kdjax.data.loading.augment.augment` describes them: height and
        width of the scaled image, row and column of the corner, and whether the crop is mirrored.
      crop_size: height and width of the crops in pixels. Where a scaled image is smaller, the cells
        beyond it take what its edge shows.
      grid: h and w, the cells of a crop.

    Returns:
      Class scores in float32.
    """

    def one(
        scores: Float[Array, "H W K"], size: Int[Array, "2"], place: Int[Array, "5"]
    ) -> Float[Array, "h w K"]:
        rows, columns = (
            sampling_weights(
                size[axis]
                * _centres(
                    place[axis],
                    place[2 + axis],
                    crop_size[axis],
                    grid[axis],
                    place[4] if axis else jnp.zeros((), jnp.int32),
                ),
                size[axis],
                scores.shape[axis],
            )
            for axis in (0, 1)
        )
        # Products of matrices: accelerators gather single cells slowly.
        exact = jax.lax.Precision.HIGHEST
        bands = jnp.einsum("iy,yxk->ixk", rows, scores.astype(jnp.float32), precision=exact)
        return jnp.einsum("jx,ixk->ijk", columns, bands, precision=exact)

    return jax.vmap(one)(scores, sizes, places)


def _centres(
    scaled: Int[Array, ""],
    corner: Int[Array, ""],
    crop: int,
    cells: int,
    mirrored: Int[Array, ""],
) -> Float[Array, " cells"]:
    """Along an axis, where the centres of a crop's cells lie: as shares of the scaled image."""
    last = jnp.minimum(corner + crop, scaled) - 1  # the last pixel that the crop shows
    pixels = corner + (jnp.arange(cells) + 0.5) * crop / cells - 0.5
    pixels = jnp.where(mirrored == 1, last + corner - pixels, pixels)
    return (pixels + 0.5) / scaled
