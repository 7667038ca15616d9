"""Writes docs/networks.md: parameters, operations, and features of the named networks.

    python -m tools.networks            writes the page
    python -m tools.networks --check    checks the page (seconds per network)

Networks are traced with shapes only. Multiply-adds are those of the convolutions and matrix
products of a prediction for one image of 512 x 1024. Normalization, activations, resizing, and
the auxiliary head are not counted.
"""

import argparse
import math
import pathlib
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import jaxprs_in_params

from kdjax import models
from kdjax.models import layers
from kdjax.models.adapters import traced_rngs
from kdjax.models.architectures import EXTRACTORS, FIXED

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "networks.md"
SIZE = (512, 1024)
CLASSES = 19
COLUMNS = ("stage1", "stage2", "stage3", "stage4", "head", "aux_head")
HEAD = f"""# Networks

These are the networks that `models.create(name, num_classes={CLASSES})` builds by name.

- **Parameters** are in millions and include the auxiliary head. If mmsegmentation has the network,
  its number is exactly the same ([parity](results/parity.md)).
- **Multiply-adds** are in billions, for one prediction on 512 x 1024: convolutions and matrix
  products, without the auxiliary head. One multiply-add is two floating-point operations.
- **Features** are channels / stride. `logits` and `aux_logits` have the strides of `head` and
  `aux_head`.

Every backbone works with every head. Networks such as `pspnet_swin_t` and `upernet_mit_b0` exist
too, but no other project has them, so the table omits them. Three heads are light, for light
backbones:

- `lraspp` is the head of MobileNetV3.
- `deeplabv3plus_light` is DeepLabV3+ as in its paper, at output stride 16 and with a 1x1
  bottleneck, but with 96 channels instead of 256.
- `fpn_light` is the top-down path of a feature pyramid, also with 96 channels, at output stride 32.
  Its finest map is classified.

`linear` is a 1x1 convolution on the last stage, as a linear probe has it. The backbones `dinov2_s`,
`_b`, `_l`, and `_g` (each also with `_reg`, for registers), and `dinov3_s`, `_splus`, `_b`, `_l`,
and `_hplus` are Vision Transformers: all four stages have the stride of a patch, 14 or 16. The name
of a backbone alone, such as `dinov2_s` or `r18`, is a network without class scores, for
`num_classes=0`: [it teaches features, or learns them](pretraining.md).

A new backbone is one file that maps images to `stage1` to `stage4`, and one line in
`kdjax/models/architectures.py`. The same holds for a new head.

A name with "@" is a network of another project, whose layers differ: CIRKD's, with the heads'
channels of its first code (`@cirkd`) or of its code for CIRKDv2 (`@cirkdv2`), TorchDistiller's, and
SegFormer as its authors published it (`@nvlabs`).

    python -m tools.networks

| network | parameters | multiply-adds | {" | ".join(COLUMNS)} |
| --- | ---: | ---: |{" --- |" * len(COLUMNS)}
"""


LIGHT = ("lraspp_", "deeplabv3plus_light_", "fpn_light_")


def listed(name: str) -> bool:
    """Returns True if the table has the network.

    The table has the networks that other projects have, light heads on light backbones, all heads
    on EfficientNet-Lite0, and the linear head on Vision Transformers.
    """
    if name in EXTRACTORS:
        return False
    if name.endswith("efficientnet_lite0"):
        return True
    if "_efficientnet_lite" in name:
        return name.startswith(LIGHT)
    if name.startswith(LIGHT):
        return name.endswith("_mbv2")
    others = name.endswith(tuple(f"_{backbone}" for backbone in FIXED))
    own = ("fcn_hr", "segformer", "linear_dino")
    if name.startswith("linear_"):
        return name.startswith(own)
    return not others or name.startswith(own) or name == "upernet_swin_t"


LISTED = list(filter(listed, models.NETWORKS))


def build(name: str) -> models.Segmenter:
    """Returns the network without weights."""
    return nnx.eval_shape(lambda: models.create(name, num_classes=CLASSES, rngs=traced_rngs(0)))


def described(net: models.Segmenter) -> tuple[str, list[str]]:
    """Returns the parameters in millions, and the cells of the features."""
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
    specs = net.feature_specs
    cells = [f"{specs[key].channels} / {specs[key].stride}" for key in COLUMNS if key in specs]
    return f"{count / 1e6:.2f}", cells + [""] * (len(COLUMNS) - len(cells))


def multiply_adds(net: models.Segmenter) -> int:
    """Returns the multiply-adds of one prediction."""
    net.auxiliary_head = None
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    graphdef, state = nnx.split(net)
    # kdjax computes depthwise convolutions as sums of products, which cannot be counted.
    with mock.patch.object(layers.DepthwiseConv, "__call__", nnx.Conv.__call__):
        traced = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x).logits)(
            state, images
        )
    return counted(traced.jaxpr)


def counted(jaxpr: Any) -> int:
    """Returns the multiply-adds of the convolutions and matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        inputs = [variable.aval.shape for variable in equation.invars]
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "conv_general_dilated":
            # Every output is a sum over a kernel [h, w, in, out].
            total += size * math.prod(inputs[1][:-1])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += size * math.prod(inputs[0][axis] for axis in contracted)
        for inner in jaxprs_in_params(equation.params):
            total += counted(inner)
    return total


def row(name: str) -> str:
    """Returns a line of the table."""
    net = build(name)
    parameters, cells = described(net)
    billions = f"{multiply_adds(net) / 1e9:.1f}"
    return f"| `{name}` | {parameters} | {billions} | {' | '.join(cells)} |\n"


def committed() -> dict[str, tuple[str, list[str]]]:
    """Returns the parameters and features in the page, by name."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            name, parameters, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found[name.strip("`")] = (parameters, cells)
    return found


def main() -> None:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        page = committed()
        wrong = [name for name in LISTED if page.get(name) != described(build(name))]
        if wrong or page.keys() != set(LISTED):
            sys.exit(f"docs/networks.md is outdated: {', '.join(wrong) or 'other names'}")
        return
    rows = []
    for name in LISTED:
        rows.append(row(name))
        print(rows[-1], end="", flush=True)
    PAGE.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
