"""Whether an exported function labels images as the network that it came from."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from kdjax.deployment.labelling import ANY, Images, Label, Labels, Size, labelling
from kdjax.errors import UserError
from kdjax.models import Network, Preprocessing, Variables
from kdjax.models.layers import resize
from kdjax.models.network import scores_of

# Another program adds in another order. Two classes whose scores are nearer to each other than this
# part of the image's largest score are a tie, which rounding may decide either way.
TIE = 1e-4
# Where any size will do, these are tried: two of them, so that nothing is fixed by accident.
TRIED = ((64, 96), (97, 65))


class Agreement(NamedTuple):
    """What a comparison found.

    Attributes:
      pixels: how many were labelled.
      agreeing: how many of them alike; the others are ties.
      classes: how many classes the network found among them.
    """

    pixels: int
    agreeing: int
    classes: int

    def __str__(self) -> str:
        """One line for people."""
        share = 100 * self.agreeing / self.pixels
        return f"{share:.3f} % of {self.pixels} labels agree, {self.classes} classes among them"


def random_images(size: Size) -> list[UInt8[np.ndarray, "B H W 3"]]:
    """Returns batches of two and of one image: noise, and patches of even colour.

    Noise alone looks the same everywhere to a network with large windows.

    Args:
      size: of the images; where any will do, the batches differ in size too.
    """
    sizes = TRIED if size == ANY else (size, size)
    generator = np.random.default_rng(0)
    batches = []
    for count, (height, width) in zip((2, 1), sizes, strict=True):
        assert height is not None
        assert width is not None
        patches = generator.integers(0, 256, (count, -(-height // 16), -(-width // 16), 3))
        images = patches.repeat(16, 1).repeat(16, 2)[:, :height, :width]
        images[0] += generator.integers(-64, 65, images[0].shape)
        batches.append(images.clip(0, 255).astype(np.uint8))
    return batches


def compare(
    label: Label,
    network: Network,
    variables: Variables,
    preprocessing: Preprocessing,
    batches: Iterable[UInt8[np.ndarray, "B H W 3"]],
) -> Agreement:
    """Compares the labels of an exported function with those of the network.

    Args:
      label: the exported function.
      network: as it was before anything was done to it.
      variables: its arrays.
      preprocessing: how pixels become its input.
      batches: images.

    Raises:
      UserError: where they differ by more than the rounding of scores explains.
    """
    predict = labelling(network, variables, preprocessing)

    @jax.jit
    def behind(variables: Variables, images: Images, labels: Labels) -> Float[Array, "B H W"]:
        seen = preprocessing(jnp.asarray(images))
        scores = scores_of(network.apply(variables, seen, train=False, key=None)[0])
        return _behind(resize(scores.astype(jnp.float32), images.shape[1:3]), labels)

    pixels, agreeing, classes = 0, 0, set()
    for images in batches:
        expected, found = np.asarray(predict(images)), np.asarray(label(images))
        if found.shape != expected.shape:
            raise UserError(
                f"it labels images {images.shape} by {found.shape} instead of {expected.shape}"
            )
        # The scores are computed only where they are needed: they take another compilation.
        same = np.array_equal(found, expected)
        wrong = 0 if same else int(np.sum(behind(variables, images, found) > TIE))
        if wrong:
            raise UserError(
                f"{wrong} of {found.size} labels are not the network's, by more than rounding"
            )
        pixels += found.size
        agreeing += int(np.sum(found == expected))
        classes |= set(np.unique(expected).tolist())
    return Agreement(pixels, agreeing, len(classes))


def _behind(scores: Float[Array, "B H W K"], labels: Labels) -> Float[Array, "B H W"]:
    """How far the labels' scores are behind the best, as a part of the image's largest score."""
    # A label that is no class has no score.
    chosen = jnp.sum(jax.nn.one_hot(labels, scores.shape[-1]) * scores, axis=-1)
    known = (labels >= 0) & (labels < scores.shape[-1])
    behind = jnp.max(scores, axis=-1) - jnp.where(known, chosen, -jnp.inf)
    return behind / jnp.max(jnp.abs(scores), axis=(1, 2, 3), keepdims=True)[..., 0]
