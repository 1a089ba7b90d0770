"""Machine-learning notes made executable: functional building blocks in JAX and Flax.

Each chapter of the notes is a sub-package: `from mlnotes.diffusion import ...`. Importing any of them creates
no array and touches no accelerator.
"""
