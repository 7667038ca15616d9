"""A network as one function from 8-bit images to label maps, and the image sizes it takes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core
from jax.interpreters import partial_eval
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
    """Returns what `Predictor` computes, with those weights inside that it needs.

    Args:
      network: the network.
      variables: its arrays.
      preprocessing: how pixels become its input.
    """
    predictor = Predictor(network, preprocessing)

    def label(images: Images) -> Labels:
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        program = jax.make_jaxpr(predictor)(variables, shape)
        # What predicting does not need, as an auxiliary head, is not to be written.
        needed, used = partial_eval.dce_jaxpr(program.jaxpr, [True])
        given = (*jax.tree.leaves(variables), images)
        read = [value for value, needs in zip(given, used, strict=True) if needs]
        return core.jaxpr_as_fun(core.ClosedJaxpr(needed, program.consts))(*read)[0]

    return label


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
