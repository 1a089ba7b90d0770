"""Machine-learning notes made executable: functional building blocks in JAX and Flax.

Each chapter of the notes is a sub-package: `from mlnotes.diffusion import ...`. Importing any of them creates
no array and touches no accelerator. `mlnotes.load_run("runs/digits")` is a trained model as a function.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  if name == "load_run":  # what it needs is imported by whoever asks for it
    from mlnotes.engine.runs import load_run

    return load_run
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
