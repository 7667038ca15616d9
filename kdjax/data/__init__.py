"""Records to batches: prepared sets, stateless augmentation and input pipelines.

`sets` finds and prepares data sets, `pipeline` turns them into batches of NumPy arrays. Its
submodules import TensorFlow; importing `kdjax.data` itself costs nothing.
"""
