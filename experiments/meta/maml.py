"""Model-agnostic meta-learning: an initialisation from which a few gradient steps learn a task (Finn et al. 2017).

    python -m experiments.meta.maml --seeds=5
    python -m experiments.meta.maml --tasks=images --dataset=digits

FOMAML is --order=first, ANIL --adapted=head, MAML++'s parts are --multi_step_updates and --step_rates.
"""

import dataclasses

from experiments.meta._family import make_family
from experiments.meta._maml import MAMLConfig, make_method
from experiments.meta._meta_training import make_feeds as make_feeds, make_meta_learning, meta_train
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MAMLConfig):
  step_rates: bool = field(False, "learn a rate of the inner loop for every layer and step")


def make(config: Config) -> Experiment:
  family = make_family(config)
  method = make_method(family.learner, config, "step_rates" if config.step_rates else "nothing")
  return make_meta_learning(method, family, config)


def main(config: Config) -> int:
  return meta_train(make(config), config)


if __name__ == "__main__":
  run(main, Config)
