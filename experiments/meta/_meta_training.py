"""What every experiment of this chapter shares: its flags, the outer update, evaluation by adapting to frozen tasks.

family = make_family(config)
return make_meta_learning(make_method(family.learner, config), family, config)
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.meta._episodes import EpisodeConfig
from experiments.meta._family import Family, make_family
from mlnotes.data import Feeds
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.meta.adapt import adapt
from mlnotes.meta.method import MetaParams, Method, State, make_judge, mean_over_chunks
from mlnotes.meta.task import Task
from mlnotes.optim import eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

_OF_IMAGES = (
  "dataset", "data_dir", "train_split", "test_split", "data_placement", "ways", "eval_queries", "image_size",
  "bright_ink", "rotations", "valid_fraction", "test_fraction", "class_seed", "network", "width", "batch_norm",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaConfig(EpisodeConfig, OptimConfig, LoopConfig):
  """The flags of every experiment that learns an initialisation.

  `TUNED` holds, per family of tasks, the settings that take the place of the defaults where they are not given.
  """

  UNIT: ClassVar[str] = "tasks"
  TUNED: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

  tasks: Literal["sinusoid", "images"] = field(
    "sinusoid", "sinusoid regression, or few-shot classification of --dataset; images bring defaults of their own"
  )
  steps: int = 15_000
  log_every: int = 500
  eval_every: int = 5000
  checkpoint_every: int = 5000
  report_seeds: int = 8
  eval_examples: int = 500
  test_tasks: int = 2000
  batch_size: int = field(25, "tasks per update", refines=True)
  side_by_side: int = field(
    0, "of the tasks of an update, how many are computed at once; the rest follow, which saves memory; 0: all"
  )
  shots: int = 10
  queries: int = 10
  inner_optimizer: Literal["sgd", "momentum", "adam"] = field(
    "sgd", "rule of the inner loop: sgd, momentum (0.9) or adam with beta1 = 0"
  )
  inner_learning_rate: float = field(0.01, "of the inner loop, > 0; where rates are learned, what they start from")
  inner_steps: int = field(1, "updates on a task in training")
  eval_inner_steps: int = field(10, "updates on a task in evaluation", free="report")
  network: Literal["conv4", "fully_connected"] = field("conv4", "for images; sinusoids have a perceptron of --widths")
  width: int = field(64, "channels of conv4's layers")
  widths: tuple[int, ...] = field((40, 40), "units of the hidden layers for sinusoids")
  batch_norm: Literal["transductive", "support"] = field(
    "transductive", "what query images are normalised by: the query images, or the support images"
  )
  remat: bool = field(False, "compute inner steps again in the outer backward pass instead of keeping them in memory")

  def __post_init__(self):
    super().__post_init__()
    for name in ("inner_steps", "eval_inner_steps", "width"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.inner_learning_rate > 0, "inner_learning_rate", self.inner_learning_rate, "a number above 0")
    require(all(w >= 1 for w in self.widths), "widths", self.widths, "widths of 1 or more")
    require(
      self.side_by_side >= 0 and (self.side_by_side == 0 or self.batch_size % self.side_by_side == 0),
      "side_by_side", self.side_by_side, f"0 or a divisor of --batch_size={self.batch_size}",
    )  # fmt: skip

  @property
  def fills_cores(self) -> bool:
    return self.tasks == "images"

  def idle_flags(self):
    idle = super().idle_flags()
    if self.tasks == "sinusoid":
      return idle | dict.fromkeys(_OF_IMAGES, "--tasks=sinusoid has no images")
    if self.network == "fully_connected":
      idle["width"] = "it is that of --network=conv4"
    return idle | {"widths": "they are those of --tasks=sinusoid"}

  @classmethod
  def tuned(cls, **given: Any) -> "MetaConfig":
    """The config with what was given, and the settings of the family of tasks for the rest."""
    tasks = given.get("tasks", cls.__dataclass_fields__["tasks"].default)
    return cls(**{**cls.TUNED.get(tasks, {}), **given})


def make_meta_learning(method: Method, family: Family, config: MetaConfig) -> Experiment:
  """The experiment that trains by `method` on `family` and evaluates by adapting to tasks that it has not seen."""
  optimizer = make_optimizer(config, config.steps)
  judge = make_judge(family.learner, method, config.eval_inner_steps)
  moments = sorted({0, 1} - {config.eval_inner_steps})
  classes = config.tasks == "images"
  # One task after the other where memory is to be saved.
  map_tasks = jax.lax.map if config.side_by_side else lambda f, tasks: jax.vmap(f)(tasks)

  def init_params(key, task: Task) -> MetaParams:
    initial = family.learner.init(stream_key(key, "init"), task)
    return MetaParams(initial, method.rates(initial))

  def init(key, batch: Task) -> State:
    params = init_params(key, jax.tree.map(lambda x: x[0], batch))
    hparams = {"inner_learning_rate": jnp.float32(config.inner_learning_rate)}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def step(state: State, batch: Task):
    # Numbered before they are divided, so that a task in a chunk draws what it would among all.
    numbered = (batch, jnp.arange(config.batch_size, dtype=jnp.int32))
    grads, metrics = mean_over_chunks(
      lambda some: method.gradient(state.params, *some, state), numbered, config.side_by_side
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    params = eval_params(state.opt_state, state.params)
    one = lambda task: judge(params, task, state.hparams)
    figures = {}
    for name, values in map_tasks(one, batch["task"]).items():
      figures[name] = masked_mean(values[:, -1], batch["mask"])
      figures |= {f"{name}_after_{n}": masked_mean(values[:, n], batch["mask"]) for n in moments}
    return figures

  def predict(params: MetaParams, hparams, support, inputs):
    """Outputs for `inputs` after 0, 1, .. updates on the support set of a task."""
    inner, mask = method.inner(params, hparams), method.mask(params.initial)
    trace = lambda params: family.learner.predict(params, support, inputs)
    loss_fn, steps = family.learner.support_loss, config.eval_inner_steps
    return adapt(loss_fn, params.initial, support, inner, steps, mask=mask, trace=trace).trace

  @functools.cache
  def tools():
    from experiments.meta._report import Tools, pixel_floor

    def judge_batch(params, hparams, arrays, i):
      return map_tasks(lambda task: judge(params, task, hparams), family.test.draw(arrays, i)["task"])

    predict_task = lambda params, hparams, task, inputs: predict(params, hparams, task.support, inputs)
    floor = lambda arrays, i: jax.vmap(lambda t: pixel_floor(t, config.ways))(family.test.draw(arrays, i)["task"])
    return Tools(jax.jit(judge_batch), jax.jit(predict_task), jax.jit(floor) if classes else None, family.test)

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.meta._report import write_report

    task = jax.tree.map(lambda x: x[0], family.test.draw(family.test.arrays, 0)["task"])
    untrained = init_params(state.key, task)
    return write_report(
      tools(), eval_params(state.opt_state, state.params), untrained, state.hparams, config, directory
    )

  # (support set of a task, inputs) -> what the adapted network says of them.
  def model(state: State):
    params = eval_params(state.opt_state, state.params)
    return jax.jit(lambda support, inputs: predict(params, state.hparams, support, inputs)[-1])

  return Experiment(init, step, evaluate, report, model=model)


def make_feeds(config: MetaConfig) -> Feeds:
  """Training tasks, and frozen validation tasks."""
  return make_family(config).feeds


def meta_train(experiment: Experiment, config: MetaConfig) -> int:
  """`mlnotes.engine.loop.train` with the best checkpoint by accuracy, or loss where there is none."""
  best = ("accuracy", "max") if config.tasks == "images" else ("loss", "min")
  return train(experiment, make_feeds(config), config, best_metric=best[0], best_mode=best[1])
