"""Records to batches: prepared sets, stateless augmentation and input pipelines.

`sets` finds and prepares data sets, whose builders share `conversion`; `pipeline` turns them into
batches of NumPy arrays. The submodules import TensorFlow; importing `kdjax.data` itself costs
nothing.
"""
