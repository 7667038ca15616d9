"""Lets a network that was trained on images with blue first read them with red first."""

from kdjax.errors import UserError
from kdjax.interop.mmseg import leaves
from kdjax.models import Segmenter

# mmsegmentation's names of the kernels that read the images.
FIRST = (
    "backbone.stem.0.weight",
    "backbone.conv1.weight",
    "backbone.conv1.conv.weight",
    "backbone.layers.0.0.projection.weight",
    "backbone.patch_embed.projection.weight",
)


def red_first(net: Segmenter) -> None:
    """Turns around the channels that the first convolution reads, in place.

    Raises:
      UserError: where the network has none of the first convolutions that are known.
    """
    found = leaves(net)
    for name in FIRST:
        if name in found:
            _, kernel = found[name]
            kernel[...] = kernel[...][:, :, ::-1]
            return
    raise UserError("which convolution of this network reads the images is not known")
