"""Convex hulls and shortest tours by a pointer network, whose answer is a sequence of its inputs. Vinyals et al. 2015.

  python -m experiments.sequence.pointer                                # hulls of 5 to 20 points
  python -m experiments.sequence.pointer --task=tsp                     # round trips through 5 to 10 points
  python -m experiments.sequence.pointer --encoder=lstm --width=256 --steps=20000     # nearer to the paper's
  python -m experiments.sequence.pointer --sizes=5,50 --test_sizes=5,10,50

Points and their exact answers are drawn on the device, for every update anew; the tests have a seed of their own. Each
answer is the likeliest point of each step, without a search. Writes answers.png, answers beside the true ones.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.sequence import (
  NO_POINT,
  PointerNetwork,
  Polygon,
  convex_hull,
  is_simple,
  nearest_neighbor_tour,
  same_polygon,
  sample_points,
  shortest_tour,
  signed_area,
  tour_length,
)

_TEST_SEED = 0
# Of each task: the sizes that are trained on, those that are asked for, and the largest that its algorithm takes.
SIZES = {"hull": ((5, 20), (5, 10, 20), 100), "tsp": ((5, 10), (5, 10), 12)}
_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: hulls of 5 to 20 points."""

  UNIT: ClassVar[str] = "sets"
  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  steps: int = 3000
  batch_size: int = field(64, "sets of points per update")
  learning_rate: float = 2e-3
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  log_every: int = 100
  eval_every: int = 1000
  checkpoint_every: int = 1000

  task: Literal[tuple(SIZES)] = field("hull", "what is asked: corners of the convex hull, or the shortest round trip")
  sizes: tuple[int, ...] = field((), "fewest and most points in training; empty: 5,20 of hull, 5,10 of tsp")
  test_sizes: tuple[int, ...] = field((), "points of the tests, ascending; empty: 5,10,20 of hull, 5,10 of tsp")
  test_sets: int = field(512, "sets of points of each test")
  encoder: Literal["transformer", "lstm", "bilstm"] = field("transformer", "what reads the points; lstm is the paper's")
  width: int = field(64, "features of everything")
  depth: int = field(2, "layers of the transformer")
  heads: int = field(4, "its heads, a divisor of --width")
  glimpse: bool = field(False, "the decoder reads the points before it points")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "test_sets", "width", "depth", "heads"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    most = SIZES[self.task][2]
    range_ = self.train_sizes
    fits = len(range_) == 2 and 3 <= range_[0] <= range_[1] <= most
    require(fits, "sizes", ",".join(map(str, range_)), f"two ascending numbers from 3 to {most} of --task={self.task}")
    tests = self.asked_sizes
    fits = tests[0] >= 3 and tests[-1] <= most and all(a < b for a, b in itertools.pairwise(tests))
    said = f"ascending numbers from 3 to {most} of --task={self.task}"
    require(fits, "test_sizes", ",".join(map(str, tests)), said)
    if self.encoder == "transformer":
      require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    if self.encoder != "lstm":
      require(self.width % 2 == 0, "width", self.width, f"an even number for --encoder={self.encoder}")

  def idle_flags(self):
    idle = super().idle_flags() | {"precision": "it computes in float32"}
    if self.encoder != "transformer":
      idle |= dict.fromkeys(("depth", "heads"), "they are of --encoder=transformer")
    return idle

  @property
  def train_sizes(self) -> tuple[int, ...]:
    return self.sizes or SIZES[self.task][0]

  @property
  def asked_sizes(self) -> tuple[int, ...]:
    return self.test_sizes or SIZES[self.task][1]


class PointSet(NamedTuple):
  """Points, how many are there, and the true answer: indices, then N for the end, then `NO_POINT`."""

  points: Float[Array, "*B N 2"]
  count: Int[Array, "*B"]
  answer: Int[Array, "*B T"]


def draw_set(config: Config, key: Key[Array, ""], least: int, most: int) -> PointSet:
  """`least` to `most` points with their answer, in arrays for `most`."""
  of_count, of_points = jax.random.split(key)
  count = jax.random.randint(of_count, (), least, most + 1)
  points = sample_points(of_points, most)
  polygon = (convex_hull if config.task == "hull" else shortest_tour)(points, count)
  answer = jnp.append(polygon.indices, NO_POINT).at[polygon.size].set(most)
  return PointSet(points, count, answer)


def as_polygon(answer: Int[Array, "T"]) -> Polygon:
  """The points of an answer, without its end."""
  size = answer.shape[0] - 1
  indices = jnp.where(answer[:-1] == size, NO_POINT, answer[:-1])
  return Polygon(indices, jnp.sum(indices != NO_POINT))


def make_feeds(config: Config) -> Feeds:
  draw = lambda key, arrays: draw_set(config, key, *config.train_sizes)

  def draw_tests(key, arrays):
    return {str(n): draw_set(config, stream_key(key, str(n)), n, n) for n in config.asked_sizes}

  train = make_drawn_feed(draw, (), config.batch_size)
  test = make_drawn_eval(draw_tests, (), _TEST_SEED, config.test_sets, config.batch_size)
  return Feeds(train, test, split="test")


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


class Model(NamedTuple):
  """Points in the unit square (B, N, 2) and how many of them are there (B,) to the answer (B, N + 1)."""

  module: PointerNetwork
  params: Any

  def __call__(self, points: Float[Array, "B N 2"], counts: Int[Array, " B"]) -> Int[Array, "B T"]:
    return self.module.apply({"params": self.params}, _standard(points), counts, method="decode")

  def logits(self, sets: PointSet) -> Float[Array, "B T S"]:
    return self.module.apply({"params": self.params}, _standard(sets.points), sets.count, sets.answer)


def _standard(points: Float[Array, "B N 2"]) -> Float[Array, "B N 2"]:
  """With mean 0 and standard deviation 1 over the square."""
  return (points - 0.5) * 12**0.5


def answer_losses(logits: Float[Array, "B T S"], answer: Int[Array, "B T"]) -> tuple[Array, Array]:
  """(nats of a whole answer, its end counted; how many steps it has), both (B,)."""
  asked = answer != NO_POINT
  each = cross_entropy(logits, jnp.maximum(answer, 0))
  return jnp.sum(jnp.where(asked, each, 0), 1), jnp.sum(asked, 1).astype(jnp.float32)


def judge(task: str, sets: PointSet, said: Int[Array, "B T"]) -> dict[str, tuple[Array, Array]]:
  """{figure: (sums, counts)} of each set.

  hull: `accuracy`, the same polygon; `simple`, it does not cross itself; `area`, of the simple ones over the true area,
  0 where there is none.
  tsp: `ratio`, length over the shortest; `optimal`, as short as that but for rounding.
  """
  given, true = jax.vmap(as_polygon)(said), jax.vmap(as_polygon)(sets.answer)
  one = jnp.ones(len(said))
  if task == "tsp":
    ours, best = (jax.vmap(tour_length)(sets.points, tour) for tour in (given, true))
    return {"ratio": (ours, best), "optimal": ((ours < best * (1 + 1e-5)).astype(jnp.float32), one)}
  simple = jax.vmap(is_simple)(sets.points, given).astype(jnp.float32)
  area, whole = (jnp.abs(jax.vmap(signed_area)(sets.points, polygon)) for polygon in (given, true))
  right = jax.vmap(same_polygon)(given, true).astype(jnp.float32)
  return {
    "accuracy": (right, one),
    "simple": (simple, one),
    "area": (simple * area / jnp.maximum(whole, 1e-9), simple),
  }


def make(config: Config) -> Experiment:
  optimizer = make_optimizer(config, config.steps)
  module = PointerNetwork(
    config.width, config.encoder, config.depth, config.heads, config.glimpse, visits_all=config.task == "tsp"
  )

  def init(key, batch: PointSet) -> State:
    first = jax.tree.map(lambda x: x[:1], batch)
    params = module.init(stream_key(key, "init"), _standard(first.points), first.count, first.answer)["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch: PointSet):
    def mean_loss(params):
      loss, steps = answer_losses(Model(module, params).logits(batch), batch.answer)
      return jnp.sum(loss) / jnp.sum(steps)

    loss, grads = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.key, params, opt_state), {"loss": loss, "grad_norm": optax.global_norm(grads)}

  def trained(state: State) -> Model:
    return Model(module, eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch) -> dict[str, Mean]:
    model, mask, found = trained(state), batch["mask"], {}
    nats = steps = 0.0
    for n in config.asked_sizes:
      sets = batch[str(n)]
      loss, count = answer_losses(model.logits(sets), sets.answer)
      nats, steps = nats + jnp.sum(loss * mask), steps + jnp.sum(count * mask)
      for name, (total, count) in judge(config.task, sets, model(sets.points, sets.count)).items():
        # 0 where no answer counts, and no other mean changed: counts are whole.
        found[f"{name}_{n}"] = Mean(jnp.sum(total * mask), jnp.maximum(jnp.sum(count * mask), 1e-6))
    return {"loss": Mean(nats, steps), **found}

  def report(state: State, directory: Path) -> dict[str, float]:
    draw_answers(trained(state), config, directory / "answers.png")
    return compute_floors(config)

  return Experiment(init, step, evaluate, report, model=trained)


def compute_floors(config: Config) -> dict[str, float]:
  """Of tours: the mean shortest length, and what going to the nearest point that is left has over it."""
  found = {}
  if config.task == "tsp":
    feeds = make_feeds(config)

    def measure(sets: PointSet) -> tuple[Array, Array]:
      tours = jax.vmap(nearest_neighbor_tour)(sets.points, sets.count), jax.vmap(as_polygon)(sets.answer)
      return tuple(jax.vmap(tour_length)(sets.points, tour) for tour in tours)

    draw = jax.jit(lambda i: {str(n): measure(feeds.evaluate.draw((), i)[str(n)]) for n in config.asked_sizes})
    batches = [draw(i) for i in range(feeds.evaluate.num_batches)]
    for n in config.asked_sizes:
      theirs, best = (
        np.mean(np.concatenate(x)[: config.test_sets]) for x in zip(*(batch[str(n)] for batch in batches))
      )
      found |= {f"nearest_{n}": float(theirs / best), f"shortest_{n}": float(best)}
  return found


def draw_answers(model: Model, config: Config, path: Path) -> None:
  """A row for each test size: points, the true answer as an area or a broad line, the model's as a thin one."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(
    len(config.asked_sizes), _SHOWN, width=2.6 * _SHOWN, height=2.8 * len(config.asked_sizes) + 0.6
  )

  @functools.partial(jax.jit, static_argnums=1)
  def ask(params, n: int):
    keys = jax.random.split(stream_key(root_key(_TEST_SEED), f"pictures {n}"), _SHOWN)
    sets = jax.vmap(lambda key: draw_set(config, key, n, n))(keys)
    said = model._replace(params=params)(sets.points, sets.count)
    return sets, said, judge(config.task, sets, said)

  for row, n in enumerate(config.asked_sizes):
    sets, said, judged = ask(model.params, n)
    for i, axis in enumerate(axes[row]):
      points = np.asarray(sets.points[i])
      true, ours = (points[_closed(answer[i])] for answer in (sets.answer, said))
      if config.task == "hull":
        axis.fill(*true.T, color="C0", alpha=0.25, linewidth=0, label="true")
        title = "right" if judged["accuracy"][0][i] else "wrong"
      else:
        axis.plot(*true.T, color="C0", alpha=0.3, linewidth=6, label="shortest")
        title = f"{float(judged['ratio'][0][i] / judged['ratio'][1][i]):.3f} x shortest"
      axis.plot(*ours.T, color="C3", linewidth=1.3, label="pointed at")
      axis.plot(*points.T, "k.", markersize=4)
      axis.set_title(f"{n} points: {title}", fontsize=9)
      axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=[], yticks=[])
  figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9)
  what = "convex hulls" if config.task == "hull" else "round trips"
  figure.suptitle(f"{what}, trained on {' to '.join(map(str, config.train_sizes))} points", fontsize=11)
  save_figure(figure, path)


def _closed(answer: Int[Array, "T"]) -> np.ndarray:
  """The points of an answer and the first again."""
  indices = np.asarray(answer)
  indices = indices[(indices != NO_POINT) & (indices != len(indices) - 1)]
  return np.append(indices, indices[:1])


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
