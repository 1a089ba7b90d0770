"""Environment steps per second of reinforcement learning over numbers of seeds or environments; compilation told apart.

  python -m launch.benchmarks.rl --experiment=ppo --seeds=1,8,64
  python -m launch.benchmarks.rl --experiment=ppo --seeds=1 --num_envs=4,64,1024
  python -m launch.benchmarks.rl --experiment=q_learning --env=FrozenLake8x8-v1 --seeds=1,64,512

A whole run of each setting is compiled, warmed up and then timed `--repeats` times for at least `--seconds`; the median
is printed. A seed's environment steps count each: 8 seeds of 4 environments make 32 steps at a time.
"""

import dataclasses
import importlib
import json
import statistics
import sys
from typing import Any, Literal

import jax

from launch.timing import Stepper
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.engine.program import Program, make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  experiment: Literal["ppo", "a2c", "trpo", "dqn", "sac", "ddpg", "q_learning", "sarsa", "expected_sarsa", "dyna_q"] = (
    field("ppo", "which method of experiments.rl")
  )
  env: str = field("", "environment; empty: the experiment's own")
  seeds: tuple[int, ...] = field((1, 8, 64), "numbers of seeds, one run each")
  num_envs: tuple[int, ...] = field((), "numbers of environments, for methods that have several; empty: the default")
  seconds: float = field(2.0, "shortest time of one measurement, > 0")
  repeats: int = field(3, "measurements, of which the median counts")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    require(self.seconds > 0, "seconds", self.seconds, "a number above 0")
    require(self.repeats >= 1, "repeats", self.repeats, "1 or more")
    for name in ("seeds", "num_envs"):
      require(min(getattr(self, name), default=1) >= 1, name, getattr(self, name), "numbers of 1 or more")
    require(len(self.seeds) > 0, "seeds", self.seeds, "one number or more")

  def cpu_layout(self, cores: int) -> Layout:
    return choose_layout(max(self.seeds), cores, fills_cores=False)


def build(name: str, given: dict[str, Any]) -> tuple[Any, Any]:
  """(module, config) of an experiment with the given settings."""
  module = importlib.import_module(f"experiments.rl.{name}")
  fields = module.Config.__dataclass_fields__
  for setting in given:
    if setting not in fields:
      raise InputError(f"--{setting} is not a setting of rl.{name}: expected it to be left out.")
  return module, module.Config.tuned(**given)


def measure(name: str, given: dict[str, Any], seeds: int, seconds: float, repeats: int) -> dict[str, Any]:
  """Compile seconds and environment steps per second of one setting."""
  module, config = build(name, given)
  devices = choose_layout(seeds, jax.device_count(), config.fills_cores).devices
  stepper = Stepper(Program(module.make(config), module.make_feeds(config), range(seeds), make_mesh(devices)))
  times = stepper.measure(repeats, seconds)
  rates = [seeds * config.env_steps_per_update / step_seconds for step_seconds in times.step_seconds]
  return {
    "experiment": f"rl.{name}",
    "env": config.env,
    "seeds": seeds,
    "num_envs": getattr(config, "num_envs", 1),
    "compile_seconds": stepper.program.compile_seconds,
    "env_steps_per_second": statistics.median(rates),
    "slowest": min(rates),
    "fastest": max(rates),
  }


def main(config: Config) -> int:
  enable_compilation_cache()
  base = {"env": config.env} if config.env else {}
  settings = [{**base, "num_envs": n} for n in config.num_envs] or [base]
  rows = []
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", file=sys.stderr)
  print(f"{'experiment':<20} {'env':<18} {'seeds':>6} {'envs':>6} {'compile s':>10} {'env steps/s':>13} {'range':>25}")
  for given in settings:
    for seeds in config.seeds:
      row = measure(config.experiment, given, seeds, config.seconds, config.repeats)
      rows.append(row)
      spread = f"{row['slowest']:,.0f} - {row['fastest']:,.0f}"
      print(
        f"{row['experiment']:<20} {row['env']:<18} {seeds:>6} {row['num_envs']:>6} {row['compile_seconds']:>10.1f} "
        f"{row['env_steps_per_second']:>13,.0f} {spread:>25}",
        flush=True,
      )
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump(rows, file, indent=2)
  return 0


if __name__ == "__main__":
  run(main, Config)
