"""What every test runs under: eight CPU devices, strict JAX, shapes checked, warnings as errors."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time of a test is LLVM's: at its first optimisation level a program compiles several times faster.
os.environ["XLA_FLAGS"] = " ".join(
  ["--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1", os.environ.get("XLA_FLAGS", "")]
)
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Checks the jaxtyping annotations of every function of the package at run time.
install_import_hook("mlnotes", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_collection_modifyitems(items):
  """One worker per file, so that fixtures and compiled programs are made once; the contract's experiments spread."""
  for item in items:
    experiment = getattr(item, "callspec", None) and item.callspec.params.get("name")
    group = f"{item.path}:{experiment}" if item.path.name == "test_contract.py" else str(item.path)
    item.add_marker(pytest.mark.xdist_group(group))


def pytest_configure(config):
  config.addinivalue_line("filterwarnings", "error")
  # Other projects' deprecations, raised while they are imported.
  config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:(?!mlnotes|experiments|launch)")


@pytest.fixture
def key():
  return jax.random.key(0)
