"""Meta-SGD: MAML that learns a learning rate for every parameter as well (Li et al. 2017).

python -m experiments.meta.meta_sgd --seeds=5
python -m experiments.meta.meta_sgd --tasks=images --dataset=digits
"""

from mlnotes.experiment import Experiment
from mlnotes.flags import run
from mlnotes.meta.experiment import make_feeds as make_feeds
from mlnotes.meta.experiment import make_meta_learning, meta_train
from mlnotes.meta.family import make_family
from mlnotes.meta.maml import MAMLConfig as Config
from mlnotes.meta.maml import make_maml


def make(config: Config) -> Experiment:
  family = make_family(config)
  return make_meta_learning(make_maml(family.learner, config, "rates"), family, config)


def main(config: Config) -> int:
  return meta_train("meta.meta_sgd", make(config), config)


if __name__ == "__main__":
  run(main, Config)
