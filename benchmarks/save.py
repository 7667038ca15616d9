"""Measures the cost of syncing a checkpoint: saves with and without syncing, in turn.

python -m benchmarks.save --directory DIR [--mib 100] [--rounds 9]

DIR must be on the measured disk.
"""

import argparse
import pathlib
import shutil
import statistics
import time

import jax.numpy as jnp
import optax

from kdjax.training import checkpoints as module
from kdjax.training.sharding import Placement
from kdjax.training.step import TrainState


def main() -> None:
    """Prints medians, quartiles, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    # Parameters and momentum, in arrays of 1 MiB.
    params = {str(index): jnp.full(2**18, 0.5 + index) for index in range(options.mib // 2)}
    state = Placement().put_state(
        TrainState(
            step=jnp.array(1),
            seed=jnp.array(0),
            params=params,
            model_state={},
            opt_state=optax.trace(0.9).init(params),
            terms={},
            ema=None,
        )
    )
    sync_tree = module.sync_tree
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(options.rounds + 1):
        for kind, times in seconds.items():
            module.sync_tree = sync_tree if kind == "with" else lambda path: None
            directory = options.directory / f"{kind}-{number}"
            checkpoints = module.Checkpoints(directory, {})
            started = time.perf_counter()
            checkpoints.save(1, state)
            started_training = time.perf_counter()
            checkpoints.close()
            if number:  # the first save of each compiles the checksum
                times.append(time.perf_counter() - started)
            shutil.rmtree(directory)
            print(f"{kind}: training waits {started_training - started:.3f} s", flush=True)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    for kind, times in seconds.items():
        low, _, high = statistics.quantiles(times, n=4)
        print(f"{kind} syncing: {medians[kind]:.3f} s ({low:.3f} to {high:.3f})")
    print(f"ratio {medians['with'] / medians['without']:.2f}, {options.mib} MiB")


if __name__ == "__main__":
    main()
