"""Frozen networks whose convolutions are in int8, by qwix."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.errors import UserError
from kdjax.models.folding import fold_where_possible
from kdjax.models.layers import Conv
from kdjax.models.network import Images, Network, NNXNetwork, Variables

# Of an image that the network is traced on, before there are any.
_BLANK = (1, 64, 64, 3)


class Int8Network(NNXNetwork):
    """A network that predicts nearly as another one does, its convolutions in int8.

    Kernels are rounded with a scale for each output channel. The maps that they meet have one scale
    each, which `quantize` finds: what is larger is cut off later. Sums are in int32, all else is in
    the type that the network computes in. Batch norm is folded before, where it is kdjax's.

    kdjax's depthwise convolutions stay as they are, since they are no products of matrices, and so
    do linear layers and attention.

    Args:
      network: one of Flax NNX, which is left as it is.

    Raises:
      UserError: for another network, for one without such convolutions, and where qwix is missing.

    Source:
      Post-training quantization with static scales, as in Jacob et al., "Quantization and training
      of neural networks for efficient integer-arithmetic-only inference" (CVPR 2018).
    """

    def __init__(self, network: Network):
        if not isinstance(network, NNXNetwork):
            raise UserError("a teacher in int8 must be a network of Flax NNX; this one is not")
        self._network = network
        super().__init__(lambda rngs: _quantized(network.fresh(rngs), jnp.zeros(_BLANK)))
        arrays = jax.eval_shape(lambda: self.init(jax.random.key(0), jnp.zeros(_BLANK)))
        if not any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(arrays)):
            raise UserError("a teacher in int8 needs convolutions, and this one has none")

    def quantize(self, variables: Variables, images: Images) -> Variables:
        """Returns this network's variables from those of the other one.

        Args:
          variables: of the other one.
          images: normalised, and such as it will see. A map's scale is its largest magnitude in an
            image, in the mean over these.
        """

        @jax.jit
        def quantized(variables: Variables, images: Array) -> Variables:
            return NNXNetwork.of(_quantized(self._network.module(variables), images))[1]

        return quantized(variables, images)


def check_platform(platform: str) -> None:
    """Requires devices that convolve in int8.

    Raises:
      UserError: for GPUs.
    """
    if platform in ("gpu", "cuda", "rocm"):
        raise UserError(
            "config.teacher.int8 is True: XLA has no convolutions in int8 for GPUs; set it to "
            'False, and config.teacher.dtype to "bfloat16"'
        )


def _quantized(module: nnx.Module, images: Float[Array, "B H W 3"]) -> nnx.Module:
    try:
        import qwix
    except ModuleNotFoundError as error:
        raise UserError('a teacher in int8 needs qwix: pip install "kdjax[int8]"') from error
    module.eval()
    fold_where_possible(module)
    for _, part in nnx.iter_modules(module):
        if type(part) is Conv:
            part.plain = True
    # Resizing, an einsum with axes in lists, is nothing that qwix can round.
    rule = qwix.QuantizationRule(
        op_names=("conv_general_dilated",),
        weight_qtype=jnp.int8,
        act_qtype=jnp.int8,
        act_static_scale=True,
    )
    return qwix.quantize_model(module, qwix.PtqProvider([rule]), images)
