"""State, step, loop, optimizer, sharding and checkpoints of a training run."""
