"""What the commands do, as functions that return results; `kdjax` itself exports them.

A file for each function and what it returns. `export` is `kdjax.deployment.export`, and `load`
stands with the network that it returns.
"""
