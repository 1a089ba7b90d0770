"""What every test runs under: eight CPU devices, strict JAX, shapes checked, warnings as errors, programs kept."""

import collections
import os
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time of a test is compilation: at LLVM's first optimisation level, and in jaxlib 0.10 with the emitters
# before XLA's fusion emitters (later ones refuse the flag), it takes about half of the time and of the memory. Not at
# level 0: there the two together compile wrong programs (a gradient of SAC's is NaN). Later flags win: the default
# compiler's programs are tested with XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true".
os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1",
    "--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
    os.environ.get("XLA_FLAGS", ""),
  ]
)
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Checks the jaxtyping annotations of every function of the package at run time.
install_import_hook("mlnotes", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from mlnotes.engine import program  # noqa: E402
from mlnotes.engine.cache import cache_directory  # noqa: E402

program.quick_compilation = lambda device, level: {}  # level 0 is wrong with those emitters

# Modules, workers and later runs of the tests take each other's programs, the small ones too: there are thousands.
jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


class _ByModule(LoadScopeScheduling):
  """A module to a worker, so that fixtures and compiled programs are made once; the contract by experiments."""

  def _split_scope(self, nodeid):
    path, _, test = nodeid.partition("::")
    return path + test.partition("[")[2] if path.endswith("test_contract.py") else path


def pytest_xdist_make_scheduler(config, log):
  return _ByModule(config, log)


def pytest_configure(config):
  config.addinivalue_line("filterwarnings", "error")
  # A worker may find a program that another one is about to write: it compiles its own.
  config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")
  # Other projects' deprecations, raised while they are imported.
  config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:(?!mlnotes|experiments|launch)")


@pytest.fixture(scope="module", autouse=True)
def _drop_programs():
  """A worker keeps the programs of one module at a time: all of them together take gigabytes."""
  yield
  jax.clear_caches()


def pytest_terminal_summary(terminalreporter):
  """Seconds of all workers by chapter, the most first."""
  seconds = collections.Counter()
  for reports in terminalreporter.stats.values():
    for report in reports:
      if hasattr(report, "duration") and hasattr(report, "nodeid"):
        place = Path(report.nodeid.partition("::")[0]).relative_to("tests")
        seconds[place.parts[0] if len(place.parts) > 1 else place.stem] += report.duration
  if seconds:
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.most_common())
    terminalreporter.write_line(f"seconds by chapter, of all workers: {parts}; together {seconds.total():.0f}")


@pytest.fixture
def key():
  return jax.random.key(0)
