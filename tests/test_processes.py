"""Two processes of JAX: together they train on one batch and evaluate each image once."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
from jax import numpy as jnp

from kdjax.data.evaluation_plan import plan
from kdjax.evaluation.evaluator import evaluate
from kdjax.training.sharding import Placement

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = [(8, 6), (8, 6), (4, 4), (8, 6), (4, 4)]


def eval_batches(process_index, process_count, batch_size=4):
    """Five images of two sizes, whose label is off by one in the first row."""
    shared = {"process_index": process_index, "process_count": process_count}
    for batch in plan(enumerate(SIZES), batch_size, **shared):
        images = np.zeros((len(batch.indices), *batch.size, 3), np.uint8)
        labels = np.full(images.shape[:-1], 255, np.uint8)
        for row, index in enumerate(batch.indices):
            if index >= 0:
                images[row] = np.random.default_rng(index).integers(0, 3, images[row].shape)
                labels[row] = images[row, ..., 0]
                labels[row, 0] = (labels[row, 0] + 1) % 3
        sizes = np.full((len(labels), 2), batch.size, np.int32)
        yield {"image": images, "label": labels, "size": sizes}


def red(state, images, sizes):
    """Stands for a network: it says what the red channel holds."""
    return images[..., 0].astype(jnp.int32)


def child(process_index, port):
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, process_index)
    placement = Placement()
    rows = np.arange(4, dtype=np.int32) + 4 * process_index
    batch = placement.put_batch({"rows": rows})["rows"]
    order = jax.jit(lambda rows: rows, out_shardings=placement.replicated)(batch)
    batches = eval_batches(process_index, 2)
    scores = evaluate(jax.jit(red), None, batches, 3, placement.put_batch)
    print("rows", *np.asarray(order), "confusion", *scores.confusion.ravel())


def test_two_processes_do_what_one_does():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = "import sys, test_processes as t; t.child(int(sys.argv[1]), int(sys.argv[2]))"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    outputs = [child.communicate(timeout=120) for child in children]
    alone = evaluate(red, None, eval_batches(0, 1, 8), 3, Placement().put_batch)
    assert alone.confusion.sum() == sum(height * width for height, width in SIZES)
    expected = " ".join(["rows", *map(str, range(8)), "confusion"])
    expected += " " + " ".join(map(str, alone.confusion.ravel()))
    for output, errors in outputs:
        assert output.splitlines()[-1] == expected, errors[-2000:]
