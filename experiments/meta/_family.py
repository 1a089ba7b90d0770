"""Families of tasks: where tasks come from, and the learner that fits them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.meta._episodes import load_episode_sets, make_episode_feeds
from mlnotes.data import EvalBatches, Feeds
from mlnotes.data.fingerprint import fingerprint
from mlnotes.data.flags import load_data
from mlnotes.engine.experiment import stream
from mlnotes.meta.episodes import frozen_episodes
from mlnotes.meta.feeds import make_frozen_tasks, make_task_feed
from mlnotes.meta.learner import Learner, make_classifier, make_regressor
from mlnotes.meta.networks import Conv4, FullyConnected, Regressor
from mlnotes.meta.sinusoid import sample_sinusoid_task

# Points of a sinusoid that its fit is judged by, and the seed that the frozen tasks of the report add.
_JUDGED_POINTS = 100
_TEST_SEED = 1


class Family(NamedTuple):
  """`feeds` are the tasks of training and evaluation, `test` the frozen ones of the report."""

  learner: Learner
  feeds: Feeds
  test: EvalBatches


def make_family(config: Any) -> Family:
  """The family that --tasks names. Raises InputError, as `load_episode_sets` does, for images."""
  dtype = jnp.dtype(config.precision)
  if config.tasks == "sinusoid":
    sample = lambda queries: lambda key, arrays: sample_sinusoid_task(key, config.shots, queries)
    judged = sample(_JUDGED_POINTS)
    # A stream of its own, so that no seed's validation curves are another's test curves.
    validation = lambda key, arrays: judged(jax.random.fold_in(key, stream("validation")), arrays)
    frozen = lambda sample, seed, count: make_frozen_tasks(sample, (), seed, count, config.batch_size)
    evaluate = frozen(validation, config.eval_seed, config.eval_examples)
    feeds = Feeds(make_task_feed(sample(config.queries), (), config.batch_size), evaluate, split="validation")
    learner = make_regressor(Regressor(config.widths, dtype=dtype))
    return Family(learner, feeds, frozen(judged, config.eval_seed + _TEST_SEED, config.test_tasks))
  sets = load_episode_sets(config)
  if config.network == "conv4":
    network = Conv4(config.ways, config.width, dtype=dtype)
  else:
    network = FullyConnected(config.ways, dtype=dtype)
  size = (config.ways, config.shots, config.eval_queries)
  test = frozen_episodes(
    sets.test, config.eval_seed + _TEST_SEED, config.test_tasks, *size, batch_size=config.batch_size
  )
  learner = make_classifier(network, config.batch_norm, sets.levels)
  feeds = make_episode_feeds(sets, config)._replace(fingerprint=fingerprint(load_data(config)))
  return Family(learner, feeds, test)
