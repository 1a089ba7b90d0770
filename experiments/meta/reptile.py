"""Reptile: move the initialisation towards the end of plain training on one task after the other (Nichol et al. 2018).

python -m experiments.meta.reptile --seeds=5
python -m experiments.meta.reptile --tasks=images --dataset=digits
"""

import dataclasses

from experiments.meta._family import make_family
from experiments.meta._meta_training import make_feeds as make_feeds
from experiments.meta._meta_training import make_meta_learning, meta_train
from experiments.meta._reptile import ReptileConfig
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import run
from mlnotes.meta.reptile import make_reptile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ReptileConfig):
  """Defaults: sinusoids, as in Nichol et al. 2018."""


def make(config: Config) -> Experiment:
  family = make_family(config)
  return make_meta_learning(make_reptile(family.learner, config), family, config)


def main(config: Config) -> int:
  return meta_train(make(config), config)


if __name__ == "__main__":
  run(main, Config)
