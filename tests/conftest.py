"""Eight devices on the CPU, so that what is sharded in the tests is really sharded."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
