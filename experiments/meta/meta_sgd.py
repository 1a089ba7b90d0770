"""Meta-SGD: MAML that learns a learning rate for every parameter as well (Li et al. 2017).

python -m experiments.meta.meta_sgd --seeds=5
python -m experiments.meta.meta_sgd --tasks=images --dataset=digits
"""

import dataclasses
from typing import ClassVar

from experiments.meta._family import make_family
from experiments.meta._maml import MAMLConfig, make_method
from experiments.meta._meta_training import make_feeds as make_feeds, make_meta_learning, meta_train
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MAMLConfig):
  """Learned rates suit the number of steps that they were trained for, and may diverge on more."""

  TUNED: ClassVar = {"images": {**MAMLConfig.TUNED["images"], "eval_inner_steps": 1}}

  eval_inner_steps: int = 1


def make(config: Config) -> Experiment:
  family = make_family(config)
  return make_meta_learning(make_method(family.learner, config, "rates"), family, config)


def main(config: Config) -> int:
  return meta_train(make(config), config)


if __name__ == "__main__":
  run(main, Config)
