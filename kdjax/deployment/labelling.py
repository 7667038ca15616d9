"""A network as one function from 8-bit images to label maps, and the image sizes it takes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Int, UInt8

from kdjax.evaluation.evaluator import Predictor
from kdjax.models import Network, Preprocessing, Variables

# JAX traces it; what is loaded from a file takes and returns NumPy arrays.
Images = UInt8[Array, "B H W 3"] | UInt8[np.ndarray, "B H W 3"]
Labels = Int[Array, "B H W"] | Int[np.ndarray, "B H W"]
Label = Callable[[Images], Labels]


class Size(NamedTuple):
    """Height and width of the images, or None twice where any size will do."""

    height: int | None
    width: int | None

    @property
    def fixed(self) -> bool:
        """Whether images must have this size."""
        return self.height is not None

    @property
    def symbolic(self) -> str:
        """The input's shape as JAX writes it, with the batch open."""
        return f"(b, {self.height}, {self.width}, 3)" if self.fixed else "(b, h, w, 3)"


ANY = Size(None, None)


def labelling(network: Network, variables: Variables, preprocessing: Preprocessing) -> Label:
    """Returns what `Predictor` computes, with the weights inside.

    Args:
      network: the network.
      variables: its arrays.
      preprocessing: how pixels become its input.
    """
    predictor = Predictor(network, preprocessing)
    return lambda images: predictor(variables, images)


def takes_any_size(label: Label) -> bool:
    """Whether JAX can trace the function without knowing the height and width.

    Adaptive pooling (PSPNet, UPerNet) and window attention (Swin) build arrays whose sizes are
    computed from the image's, in Python.
    """
    shape = export.symbolic_shape(ANY.symbolic)
    try:
        jax.eval_shape(label, jax.ShapeDtypeStruct(shape, jnp.uint8))
    # What asks for a number where there is a symbol: `range` and NumPy raise the first, comparisons
    # the second.
    except (TypeError, jax.errors.InconclusiveDimensionOperation):
        return False
    return True
