"""Compares the labels of an exported student with those of the network."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from kdjax.deployment.formats import Images, Labels, PredictFn, Size, make_predict_fn
from kdjax.models import Network, Preprocessing, Variables
from kdjax.models.layers import resize
from kdjax.models.network import scores_of
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError

# Programs add in different orders. Two classes are a tie if their scores differ by less than this
# share of the image's largest score. Rounding may then choose either class.
TIE = 1e-4
# The test images if a file takes any size. Two sizes, so that none is fixed by accident.
TRIED = ((64, 96), (97, 65))


class Agreement(NamedTuple):
    """The result of a comparison.

    Attributes:
      pixels: number of compared labels.
      agreeing: number of equal labels; the others are ties.
      classes: number of classes among the network's labels.
    """

    pixels: int
    agreeing: int
    classes: int

    def __str__(self) -> str:
        share = 100 * self.agreeing / self.pixels
        return (
            f"{share:.3f} % of {self.pixels} labels agree with the network's, classes among them: "
            f"{self.classes}"
        )


def random_images(size: Size, bands: Bands = RGB) -> list[Shaped[np.ndarray, "B H W C"]]:
    """Returns batches of two and of one image: noise, and patches of even color.

    A network with large windows sees noise as uniform, so noise alone tests too little.

    Args:
      size: the size of the images. If it is `ANY`, the batches differ in size.
      bands: their bands. Values are up to two standard deviations from the mean, if they are not
        those of photos.
    """
    generator = np.random.default_rng(0)
    batches = []
    for count, tried in zip((2, 1), TRIED, strict=True):
        height, width = size.or_else(tried)
        cells = -(-height // 16), -(-width // 16)
        patches = generator.integers(0, 256, (count, *cells, bands.channels))
        images = patches.repeat(16, 1).repeat(16, 2)[:, :height, :width]
        images[0] += generator.integers(-64, 65, images[0].shape)
        batches.append(_in_units_of(bands, images.clip(0, 255)))
    return batches


def _in_units_of(bands: Bands, levels: np.ndarray) -> np.ndarray:
    """Returns levels of 0..255 as values of bands."""
    if bands != RGB:
        levels = np.array(bands.mean) + np.array(bands.std) * (levels / 63.75 - 2)
        if bands.dtype != "float32":
            levels = levels.round().clip(0, np.iinfo(bands.dtype).max)
    return levels.astype(bands.dtype)


def compare_predictions(
    predict_fn: PredictFn,
    network: Network,
    variables: Variables,
    preprocessing: Preprocessing,
    batches: Iterable[Shaped[np.ndarray, "B H W C"]],
    *,
    least: float | None = None,
) -> Agreement:
    """Compares the labels of an exported function with those of the network.

    Args:
      predict_fn: the exported function.
      network: the original network.
      variables: the variables of the network.
      preprocessing: turns pixels into the network's input.
      batches: images.
      least: the least share of equal labels, for formats with low precision. None allows only ties
        to differ.

    Raises:
      UserError: if more labels differ.
    """
    predict = make_predict_fn(network, variables, preprocessing)

    @jax.jit
    def distances(variables: Variables, images: Images, labels: Labels) -> Float[Array, "B H W"]:
        seen = preprocessing(jnp.asarray(images))
        scores = scores_of(network.apply(variables, seen, train=False, key=None)[0])
        return _distances(resize(scores.astype(jnp.float32), images.shape[1:3]), labels)

    pixels, agreeing, classes = 0, 0, set()
    for images in batches:
        expected, found = np.asarray(predict(images)), np.asarray(predict_fn(images))
        if found.shape != expected.shape:
            raise UserError(
                f"it labels images {images.shape} by {found.shape} instead of {expected.shape}"
            )
        # The scores need another compilation, so they are computed only if labels differ.
        if least is None and not np.array_equal(found, expected):
            # NaN is not a tie.
            ties = np.asarray(distances(variables, images, found)) <= TIE
            if not ties.all():
                raise UserError(
                    f"{np.sum(~ties)} of {found.size} labels are not the network's, by more than "
                    "rounding"
                )
        pixels += found.size
        agreeing += int(np.sum(found == expected))
        classes |= set(np.unique(expected).tolist())
    if least is not None and agreeing < least * pixels:
        raise UserError(f"only {100 * agreeing / pixels:.0f} % of its labels are the network's")
    return Agreement(pixels, agreeing, len(classes))


def _distances(scores: Float[Array, "B H W K"], labels: Labels) -> Float[Array, "B H W"]:
    """Returns the best score minus the label's score, divided by the image's largest score."""
    chosen = jnp.sum(jax.nn.one_hot(labels, scores.shape[-1]) * scores, axis=-1)
    known = (labels >= 0) & (labels < scores.shape[-1])
    distance = jnp.max(scores, axis=-1) - jnp.where(known, chosen, -jnp.inf)
    largest = jnp.max(jnp.abs(scores), axis=(1, 2, 3), keepdims=True)[..., 0]
    return distance / jnp.where(largest == 0, 1.0, largest)
