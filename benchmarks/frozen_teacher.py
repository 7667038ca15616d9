"""What folding saves in the teacher's forward pass, in programs compiled for TPUs and GPUs.

    python -m benchmarks.frozen_teacher --topology h100:1 --images 8
    python -m benchmarks.frozen_teacher --topology v5e:2x2 --short

Nothing is run, and no accelerator is needed: docs/scale.md says what to install. The teacher is a
PSPNet-R101 in bfloat16 that returns its class scores on images of 512 x 1024, on one chip;
`--short` has stages of 1, 1, 2 and 1 blocks, which compile in a fraction of the time. The rows:

as it is: batch norm behind every convolution.
folded in the step: `kdjax.models.folding.FrozenNetwork`, as in training steps.
folded before: what the step takes is folded, and in bfloat16 already.
one convolution each: folded in the step, and kernels of one pixel no products of matrices.
in int8: as `config.teacher.int8` makes it; on TPUs, where qwix is installed.

Memory traffic is counted as `kdjax.plan` does.
"""

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array

from kdjax.cli import command
from kdjax.deployment.rewriting import plain_convolutions
from kdjax.distillation.feature_maps import array_of
from kdjax.models import Network, NNXNetwork, Variables, make_network, maps_of, resnet
from kdjax.models.folding import FrozenNetwork, fold_batch_norm
from kdjax.models.int8 import Int8Network
from kdjax.models.outputs import IMAGENET
from kdjax.planning.chips import find_topology
from kdjax.planning.traffic import memory_traffic

TOPOLOGY = flags.DEFINE_string("topology", None, "As h100:1 or v5e:2x2.", required=True)
IMAGES = flags.DEFINE_integer("images", 4, "Of a batch.", 1)
SHORT = flags.DEFINE_bool("short", False, "A teacher of fewer blocks.")
SIZE = (512, 1024)


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_platforms", "cpu")
    if SHORT.value:
        resnet.DEPTHS[101] = (resnet.Bottleneck, (1, 1, 2, 1))
    sharding = SingleDeviceSharding(find_topology(TOPOLOGY.value).devices[0])
    print("| teacher | memory traffic, GB | to as it is | temporaries, GB | arguments, GB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    first = 0
    for name, network, variables in teachers():
        compiled = compile_forward(network, variables, sharding)
        moved, memory = traffic(compiled), compiled.memory_analysis()
        first = first or moved
        cells = (
            name,
            f"{moved / 1e9:.2f}",
            f"{100 * (moved / first - 1):+.1f} %",
            f"{memory.temp_size_in_bytes / 1e9:.2f}",
            f"{memory.argument_size_in_bytes / 1e9:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def teachers() -> Iterator[tuple[str, Network, Any]]:
    """Each row's name, network, and what stands for its variables."""
    network = make_network("pspnet_r101", num_classes=19, dtype="bfloat16")
    assert isinstance(network, NNXNetwork)
    blank = jnp.zeros((1, *SIZE, 3))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), blank))
    yield "as it is", network, variables
    yield "folded in the step", FrozenNetwork(network), variables
    folded: list[Network] = []

    def fold(variables: Variables) -> Variables:
        found, arrays = fold_batch_norm(network, variables)
        folded.append(found)
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, arrays
        )

    arrays = jax.eval_shape(fold, variables)
    yield "folded before", folded[0], arrays
    whole = plain_convolutions(network)
    assert isinstance(whole, NNXNetwork)
    yield "one convolution each", FrozenNetwork(whole), variables
    if is_tpu() and importlib.util.find_spec("qwix"):
        quantized = Int8Network(network)
        yield "in int8", quantized, jax.eval_shape(quantized.quantize, variables, blank)


def compile_forward(network: Network, variables: Any, sharding: SingleDeviceSharding) -> Any:
    """The teacher's forward pass, compiled for one chip."""

    @functools.partial(jax.jit, in_shardings=sharding)
    def forward(variables: Variables, images: Array) -> Array:
        output, _ = network.apply(variables, IMAGENET(images), train=False, key=None)
        return array_of(maps_of(output)["logits"])

    images = jax.ShapeDtypeStruct((IMAGES.value, *SIZE, 3), jnp.uint8)
    return forward.lower(variables, images).compile()


def traffic(compiled: Any) -> int:
    """Bytes read and written, counted as plans do."""
    return memory_traffic(compiled.as_text(), spaces=is_tpu())


def is_tpu() -> bool:
    return find_topology(TOPOLOGY.value).devices[0].platform == "tpu"


if __name__ == "__main__":
    command.run(main)
