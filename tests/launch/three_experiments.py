"""Trains three small experiments for a few updates in every process; process 0 writes what they measured as JSON."""

import importlib
import json
import sys
from pathlib import Path

import jax

from mlnotes.engine import distributed
from mlnotes.engine.program import Program, make_mesh, window_means

SMALL = {
  "diffusion.ddpm": dict(
    batch_size=16, timesteps=8, channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), steps=20
  ),
  "contrastive.simclr": dict(
    batch_size=16, width=8, projection=8, steps=20, warmup_steps=2, knn_examples=32, eval_examples=32,
    augmentation="none",
  ),
  # Eight seeds, one on each device: for a single one every device would do the same.
  "rl.ppo": dict(steps=20, num_envs=4, rollout_length=16, hidden=(8,), eval_episodes=2, seeds=8),
}  # fmt: skip


def train(name, updates):
  """[{metric: values of the seeds} of each update, of the evaluation]."""
  module = importlib.import_module(f"experiments.{name}")
  config = module.Config(**SMALL[name])
  program = Program(module.make(config), module.make_feeds(config), range(config.seeds), make_mesh())
  state, measured = program.init(), []
  for _ in range(updates):
    state, window = program.update(state, program.empty_window(), 1)
    measured.append(window_means(window))
  measured.append(program.evaluate(state))
  return [{key: value.tolist() for key, value in line.items()} for line in measured]


def main(out, updates):
  with distributed.together():
    outcome = {name: train(name, updates) for name in SMALL}
    if jax.process_index() == 0:
      Path(out).write_text(json.dumps(outcome))
    distributed.wait_for_all("finished")


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]))
