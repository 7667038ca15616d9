"""An optimizer whose state is in bfloat16 and draws random numbers, and a schedule."""

import jax
import jax.numpy as jnp
import optax


def noisy(learning_rate, *, weight_decay, mask=None, noise=1e-4):
    """Momentum in bfloat16 of gradients with noise."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.add_noise(noise, 0.5, key=jax.random.key(3)),
        optax.trace(0.9, accumulator_dtype=jnp.bfloat16),
        optax.scale_by_learning_rate(learning_rate),
    )


def sawtooth(learning_rate, steps, *, teeth):
    """Falls to zero several times."""
    return lambda step: learning_rate * (1 - (step * teeth / steps) % 1)
