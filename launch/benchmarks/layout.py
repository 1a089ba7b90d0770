"""Whether the layout of a run's devices and threads is the best one: unlike experiments under each.

  python -m launch.benchmarks.layout
  python -m launch.benchmarks.layout --only=ppo,simclr_8

For the CPU. Every measurement is a process of its own; the layouts of an experiment take turns, and the median of
`--rounds` counts. Columns are updates per second over those of the layout that is chosen where none is asked for.
"""

import dataclasses
import statistics
import sys

from launch.bench import bench_apart, describe_layout, format_table, scaled
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores

WORK = {
  "ppo": ("rl.ppo", "--num_envs=4"),
  "ppo_8": ("rl.ppo", "--num_envs=4 --seeds=8"),
  "dqn": ("rl.dqn", ""),
  "dqn_8": ("rl.dqn", "--seeds=8"),
  "sac_4": ("rl.sac", "--seeds=4"),
  "q_learning_64": ("rl.q_learning", "--seeds=64"),
  "sarsa": ("rl.sarsa", ""),
  "maml_sinusoids_8": ("meta.maml", "--seeds=8"),
  "maml_images": ("meta.maml", "--tasks=images --batch_size=4 --queries=1"),
  "simclr": ("contrastive.simclr", "--width=8 --batch_size=64"),
  "simclr_8": ("contrastive.simclr", "--width=8 --batch_size=64 --seeds=8"),
  "ddpm": ("diffusion.ddpm", ""),
  "ddpm_2": ("diffusion.ddpm", "--seeds=2"),
  "learned_optimizer": ("meta.learned_optimizer", ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  only: tuple[str, ...] = field((), f"some of {', '.join(WORK)}; empty: all")
  rounds: int = field(3, "measurements of each layout, of which the median counts")
  seconds: float = field(0.2, "least duration of a measurement, > 0")

  def __post_init__(self):
    super().__post_init__()
    require(self.rounds >= 1, "rounds", self.rounds, "1 or more")
    require(self.seconds > 0, "seconds", self.seconds, "a number above 0")
    for name in self.only:
      if name not in WORK:
        raise InputError(f"--only={name} is not measured: {nearest(name, WORK)}")


def measure(name: str, devices: int, threads: int, seconds: float) -> dict | None:
  """The row of `launch.bench`, None where the work cannot be laid out so; 0 devices and threads: what is chosen."""
  experiment, flags = WORK[name]
  more = [f"--devices={devices}", f"--threads={threads}", f"--seconds={seconds}", "--measurements=5", "--cached"]
  (row,) = bench_apart(experiment, [*flags.split(), *more])["rows"]
  return None if "error" in row else row


def main(config: Config) -> int:
  cores = count_cores()
  layouts = list(dict.fromkeys([(0, 0), (1, cores), (1, 1), (cores, 1), (cores, cores)]))
  names = [f"{devices} x {threads}" for devices, threads in layouts[1:]]
  table = [["work", "chosen", "updates/s", *names, "chosen / best"]]
  worst = 1.0
  for name in config.only or WORK:
    rates, text = {layout: [] for layout in layouts}, ""
    for _ in range(config.rounds):
      for layout in layouts:
        row = measure(name, *layout, config.seconds)
        if row:
          rates[layout].append(1 / row["step_seconds"]["median"])
          text = describe_layout(row) if layout == (0, 0) else text
    median = {layout: statistics.median(found) for layout, found in rates.items() if found}
    chosen = median[0, 0]
    worst = min(worst, share := chosen / max(median.values()))
    ratios = [f"{median[layout] / chosen:.2f}" if layout in median else "-" for layout in layouts[1:]]
    table.append([name, text, scaled(chosen), *ratios, f"{share:.2f}"])
    print(f"{name}: {share:.2f} of the best", file=sys.stderr, flush=True)
  print(format_table(table))
  print(f"the chosen layout reaches at least {worst:.2f} of the best of these")
  return 0


if __name__ == "__main__":
  run(main, Config)
