"""Class scores of whole images: in compact form, in files, and sampled for crops.

The files are flat, mapped into memory, and read by the index of an image:

DIR/cache.json    the description of the scores; written last
DIR/sizes.npy     int32 [N, 2], height and width of every image's map
DIR/NAME.npy      an array of `score_layout`: the cells of all maps, one after the other;
                  bfloat16 as uint16, because `numpy.load` does not know bfloat16
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
from jaxtyping import Array, Bool, Float, Int

from kdjax.distillation import Maps
from kdjax.distillation.feature_maps import array_of
from kdjax.losses import sampling_weights
from kdjax.utils.errors import UserError

_DESCRIPTION = "cache.json"
_HALF = np.dtype(jnp.bfloat16)


def score_layout(num_classes: int, keep: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns the shape per cell and the dtype of the arrays of `compact_scores`, by name.

    Args:
      num_classes: K.
      keep: the number of highest scores that are kept; 0 for all.
    """
    if keep == 0:
        return {"scores": ((num_classes,), _HALF)}
    number = np.dtype(np.uint8 if num_classes <= 256 else np.uint16)
    return {"highest": ((keep,), _HALF), "classes": ((keep,), number), "rest": ((), _HALF)}


def compact_scores(logits: Float[Array, "... K"], keep: int) -> dict[str, Array]:
    """Returns class scores as the arrays of `score_layout`.

    "rest" is the log-mean-exp of the other scores. As the score of each other class, it preserves
    the probabilities of the kept classes, and the total probability of the others.
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
    """Returns class scores in bfloat16 from the arrays of `compact_scores`."""
    if "scores" in compacted:
        return compacted["scores"]
    rest = compacted["rest"]
    scores = jnp.broadcast_to(rest[..., None], (*rest.shape, num_classes))
    return jnp.put_along_axis(
        scores, compacted["classes"].astype(jnp.int32), compacted["highest"], -1, inplace=False
    )


class ScoreFiles:
    """Open files of scores.

    Args:
      path: the directory of the files.
      num_classes: K.
      keep: the number of highest scores that were kept; 0 for all.

    Raises:
      UserError: if a file is missing, or does not match the others.
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
        """The size of the scores on disk."""
        return sum(array.nbytes for array in self._arrays.values())

    def rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads the maps of the images at `indices`, `[B]`.

        Returns:
          `size`, int32 `[B, 2]`; and each array of the layout, `[B, H, W, ...]`, zero beyond the
          map's size. H and W fit the largest map, so that all batches have one shape.
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
    """Returns the description that `write_scores` got; None if `path` holds no scores."""
    try:
        return json.loads((path / _DESCRIPTION).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path / _DESCRIPTION} is damaged: {error}") from error


def num_bytes(sizes: np.ndarray, num_classes: int, keep: int) -> int:
    """Returns the size on disk of the scores of maps of these sizes, `[N, 2]`."""
    per_cell = sum(
        int(np.prod(shape)) * kind.itemsize
        for shape, kind in score_layout(num_classes, keep).values()
    )
    return int(sizes.prod(1, dtype=np.int64).sum()) * per_cell


def write_scores(
    path: pathlib.Path,
    description: Mapping[str, Any],
    sizes: np.ndarray,
    maps: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    *,
    num_classes: int,
    keep: int,
) -> None:
    """Writes scores to a temporary folder, which is renamed to `path` when it is complete.

    Args:
      path: the directory; missing or empty.
      description: identifies the scores.
      sizes: int32 `[N, 2]`, height and width of every map.
      maps: the index and the arrays `[H, W, ...]` of every image once, in any order.
      num_classes: K.
      keep: the number of highest scores that are kept; 0 for all.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
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
    """The scores of a batch's images, for `kdjax.training.step.make_train_step`.

    The attributes are the arguments of `sample_scores`.
    """

    scores: Float[Array, "B H W K"]
    sizes: Int[Array, "B 2"]
    places: Int[Array, "B 5"]
    crop_size: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def like(self, student: Maps) -> Maps:
        """Returns the scores on the crops, on the grid of the student's scores."""
        grid = array_of(student["logits"]).shape[1:3]
        return {"logits": sample_scores(self.scores, self.sizes, self.places, self.crop_size, grid)}


def sample_scores(
    scores: Float[Array, "B H W K"],
    sizes: Int[Array, "B 2"],
    places: Int[Array, "B 5"],
    crop_size: tuple[int, ...],
    grid: tuple[int, ...],
) -> Float[Array, "B h w K"]:
    """Samples maps of whole images bilinearly at the centers of the cells of their crops.

    If a crop is the whole image, neither scaled nor mirrored, the result is the map resized to
    `grid` without antialiasing, as by `kdjax.models.layers.resize`.

    Args:
      scores: a map of every image, zero beyond its size.
      sizes: height and width of each map without padding.
      places: of every crop, from `kdjax.data.loading.augment.augment`: height and width of the
        scaled image, row and column of the corner, and 1 if the crop is mirrored.
      crop_size: height and width of the crops in pixels. If a scaled image is smaller, the cells
        beyond it repeat its edge.
      grid: h and w, the cells of a crop.

    Returns:
      Class scores in float32.
    """

    def one(
        scores: Float[Array, "H W K"], size: Int[Array, "2"], place: Int[Array, "5"]
    ) -> Float[Array, "h w K"]:
        def weights(axis: int, mirrored: Any) -> Array:
            scaled, corner = place[axis], place[2 + axis]
            centers = _centers(scaled, corner, crop_size[axis], grid[axis], mirrored)
            return sampling_weights(size[axis] * centers, size[axis], scores.shape[axis])

        rows, columns = weights(0, False), weights(1, place[4] == 1)
        # Matrix products, because accelerators gather single cells slowly.
        exact = jax.lax.Precision.HIGHEST
        bands = jnp.einsum("iy,yxk->ixk", rows, scores.astype(jnp.float32), precision=exact)
        return jnp.einsum("jx,ixk->ijk", columns, bands, precision=exact)

    return jax.vmap(one)(scores, sizes, places)


def _centers(
    scaled: Int[Array, ""],
    corner: Int[Array, ""],
    crop: int,
    cells: int,
    mirrored: Bool[Array, ""] | bool,
) -> Float[Array, " cells"]:
    """Returns the centers of a crop's cells along an axis, as shares of the scaled image."""
    last = jnp.minimum(corner + crop, scaled) - 1  # the last pixel of the crop
    pixels = corner + (jnp.arange(cells) + 0.5) * crop / cells - 0.5
    pixels = jnp.where(mirrored, last + corner - pixels, pixels)
    return (pixels + 0.5) / scaled
