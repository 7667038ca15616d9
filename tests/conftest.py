"""Eight devices on the CPU, so that what is sharded in the tests is really sharded."""

import gc
import os
import tempfile

# Compiling takes most of the suite's time and running almost none: let LLVM do less, in one piece a
# program, and let XLA write fused loops in its older way, which takes half the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    + " --xla_cpu_parallel_codegen_split_count=1"
)
# Programs that several tests compile are compiled once; the folder goes when the session ends.
_CACHE = tempfile.TemporaryDirectory(prefix="kdjax-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402  reads the variables above

jax.config.update("jax_num_cpu_devices", 8)
# As the commands do, since a teacher behind a callback needs a thread besides those of the devices.
os.environ.setdefault("NPROC", "9")

import pytest  # noqa: E402

from kdjax.models import (  # noqa: E402
    NETWORKS,
    efficientnet_lite,
    hrnet,
    mix_transformer,
    mobilenet,
    resnet,
)

NETWORKS["tiny"] = "tiny:create"


EVERY = "KDJAX_EVERY_TEST"
# They begin first, so that at the end no worker waits for another.
_LONGEST = (
    "sharding",
    "extensions",
    "processes",
    "recipes",
    "teacher_cache",
    "training_parity",
    "every_loss",
    "slurm",
    "torch_trainer",
    "disk",
    "runs",
    "docs",
    "own_data",
    "library",
    "export",
    "training",
    "data",
    "loop",
    "ofd_and_phi_s",
    "distillation",
    "augmentation",
    "interop",
    "examples",
    "device_data",
)


def pytest_collection_modifyitems(items):
    """Puts the longest files in front, and leaves to CI what a user need not wait for."""
    if not os.environ.get(EVERY):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason=f"thorough: {EVERY}=1 runs it, as CI does"))
    order = {f"test_{name}": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    """Spares the garbage collector the libraries; what is traced and compiled has it run often."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def shallow(monkeypatch):
    """Networks with one block a stage: every kind of layer, in a fraction of the compilation."""
    for depth, (block, _) in list(resnet.DEPTHS.items()):
        monkeypatch.setitem(resnet.DEPTHS, depth, (block, (1, 1, 1, 1)))
    for size, (divisor, _) in list(mix_transformer.SIZES.items()):
        monkeypatch.setitem(mix_transformer.SIZES, size, (divisor, (1, 1, 1, 1)))
    for module in (mobilenet, efficientnet_lite):
        short = tuple(layer._replace(blocks=1) for layer in module.LAYERS)
        monkeypatch.setattr(module, "LAYERS", short)
    for size, (wider, _) in list(efficientnet_lite.SIZES.items()):
        monkeypatch.setitem(efficientnet_lite.SIZES, size, (wider, 1.0))
    for name, variant in list(hrnet.VARIANTS.items()):
        short = hrnet.Variant(variant.channels, 1, (1, 1, 1))
        monkeypatch.setitem(hrnet.VARIANTS, name, short)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Gives their memory back after every file; those of the whole suite take gigabytes."""
    yield
    jax.clear_caches()
