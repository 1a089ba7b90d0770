"""Reptile: move the initialisation towards the end of plain training on one task after the other (Nichol et al. 2018).

python -m experiments.meta.reptile --seeds=5
python -m experiments.meta.reptile --tasks=images --dataset=digits
"""

import dataclasses
from typing import ClassVar

from experiments.meta._family import make_family
from experiments.meta._meta_training import MetaConfig, make_feeds as make_feeds, make_meta_learning, meta_train
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.meta.reptile import make_reptile
from mlnotes.optim import ScheduleName
from mlnotes.optim.flags import OptimizerName


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MetaConfig):
  """The flags of Reptile; its outer rate is the share of the way to the adapted parameters that an update goes."""

  TUNED: ClassVar = {
    "images": dict(
      batch_size=5, shots=1, queries=9, inner_optimizer="adam", inner_learning_rate=1e-3, inner_steps=5,
      eval_inner_steps=50, width=32, steps=10_000, eval_every=2000, checkpoint_every=2000, eval_examples=200,
      test_tasks=1000,
    )
  }  # fmt: skip

  queries: int = 40
  optimizer: OptimizerName = "sgd"
  momentum: float = 0.0
  learning_rate: float = 1.0
  schedule: ScheduleName = "linear"
  inner_learning_rate: float = 0.01
  inner_steps: int = 10
  inner_batch: int = field(10, "examples of an inner step in training, out of a task's --shots and --queries together")

  def __post_init__(self):
    super().__post_init__()
    require(self.inner_batch >= 1, "inner_batch", self.inner_batch, "1 or more")
    require(not self.remat, "remat", self.remat, "false: Reptile has no backward pass through the inner loop")
    classes = self.ways if self.tasks == "images" else 1
    examples = classes * (self.shots + self.queries)
    expected = f"at most {examples}, the examples of a task in training"
    require(self.inner_batch <= examples, "inner_batch", self.inner_batch, expected)


def make(config: Config) -> Experiment:
  family = make_family(config)
  names = ("inner_optimizer", "inner_steps", "inner_batch")
  method = make_reptile(family.learner, **{name: getattr(config, name) for name in names})
  return make_meta_learning(method, family, config)


def main(config: Config) -> int:
  return meta_train(make(config), config)


if __name__ == "__main__":
  run(main, Config)
