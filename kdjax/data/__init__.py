"""Records to batches: prepared sets, stateless augmentation and input pipelines.

`sets` finds and prepares data sets, whose builders share `conversion`; `pipeline` turns them into
batches of NumPy arrays. This is the only room that imports TensorFlow, and it does so in its
submodules: importing `kdjax.data` itself costs nothing.
"""
