"""A small Llama that plans, calls tools, reads what they say, tries again and answers.

  python -m experiments.lm.agent                       # beside the same network that has to answer at once
  python -m experiments.lm.agent --noreflection        # gives up where a look-up finds nothing
  python -m experiments.lm.agent --nomemory            # neither keeps sums nor recalls them
  python -m experiments.lm.agent --agents=2            # a planner that asks, a worker that has the table

Goals such as `price apple times 3 plus recall red` are sums over a table that is drawn anew for each and stands nowhere
but behind the tools, with numbers that no training table has. The agent learns from traces of a faultless one, the loss
on its own words alone; then it acts: one compiled loop in which tools put their results behind its calls. Writes
agent.png, how many answers are right by the number of terms and one trace, and trace.txt. What one goal keeps in the
memory a later one recalls, in a context of its own.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._agent_report import Model, measure_answers, report_agent
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import LanguageModel, context_mask, make_llama, token_cross_entropy
from mlnotes.lm.tasks import Goal, Trace, World, answer_at_once, draw_goal, draw_world, imitate
from mlnotes.lm.tasks.tools import THINGS, TOOL_WORDS, trace_room
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

_TEST_SEED = 0  # of the test goals and tables: the same in every run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: sums of two terms, some minutes on two CPU cores."""

  UNIT: ClassVar[str] = "goals"
  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  terms: int = field(2, f"of a goal, at most; 1 to {len(THINGS)}")
  agents: int = field(1, "1, or 2: a planner that has the goal and a worker that has the table, in two contexts")
  reflection: bool = field(True, "look under the other name where nothing is found")
  memory: bool = field(True, "keep sums and recall them; without it such goals are answered with none")
  test_goals: int = field(256, "goals of the evaluation")
  depth: int = field(3, "layers")
  heads: int = field(4, "heads, a divisor of --width into even numbers")
  width: int = field(64, "features of a word")
  batch_size: int = field(32, "goals of an update")

  steps: int = 2000
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 50
  clip_norm: float = 1.0
  log_every: int = 100
  eval_every: int = 500

  def __post_init__(self):
    super().__post_init__()
    require(1 <= self.terms <= len(THINGS), "terms", self.terms, f"1 to {len(THINGS)}")
    require(self.agents in (1, 2), "agents", self.agents, "1 or 2")
    for name in ("test_goals", "depth", "heads", "width", "batch_size"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    even = self.width % self.heads == 0 and self.width // self.heads % 2 == 0
    require(even, "heads", self.heads, f"a divisor of --width={self.width} into even numbers")


class State(NamedTuple):
  """`params`: of the "agent", and of the same network that answers "alone", without tools."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: dict[str, chex.ArrayTree]
  opt_state: dict[str, optax.OptState]


def draw_task(held_out: bool, config: Config, key: Key[Array, ""], arrays: Any = ()) -> dict[str, Any]:
  """A goal and its world; `held_out`: with numbers that no training table has."""
  of_world, of_goal = jax.random.split(key)
  return {"world": draw_world(of_world, held_out), "goal": draw_goal(of_goal, config.terms)}


def make_feeds(config: Config) -> Feeds:
  test = make_drawn_eval(partial(draw_task, True, config), (), _TEST_SEED, config.test_goals, config.batch_size)
  return Feeds(make_drawn_feed(partial(draw_task, False, config), (), config.batch_size, "goals"), test, split="test")


def build_module(config: Config) -> LanguageModel:
  """Its weights begin as wide as suits so few features: with a deviation of .02 names are not copied for long."""
  room = trace_room(config.terms, config.agents)
  module = make_llama(len(TOOL_WORDS), room, config.depth, config.heads, config.width)
  scaled = partial(nn.initializers.variance_scaling, mode="fan_in", distribution="normal")
  transformer = module.transformer.clone(kernel_init=scaled(1.0), out_init=scaled(0.5 / config.depth))
  return module.clone(transformer=transformer, embed_init=nn.initializers.normal(config.width**-0.5))


def traces(config: Config, worlds: World, goals: Goal) -> dict[str, Trace]:
  """What each of the two learns to say, of a batch."""
  faultless = partial(imitate, agents=config.agents, reflection=config.reflection, memory=config.memory)
  return {"agent": jax.vmap(faultless)(worlds, goals), "alone": jax.vmap(answer_at_once)(worlds, goals)}


def own_nats(module: LanguageModel, params: Any, trace: Trace) -> tuple[Float[Array, "B S"], Array]:
  """(nats of each token behind the first, 0 of those that are not the agent's own; which are)."""
  before = trace.tokens[:, :-1]
  mask = context_mask(trace.context[:, :-1], trace.position[:, :-1])
  logits = module.apply({"params": params}, before, mask)
  own = trace.own[:, 1:]
  return jnp.where(own, token_cross_entropy(logits, trace.tokens[:, 1:])[0], 0), own


def make(config: Config) -> Experiment:
  module, optimizer = build_module(config), make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = {name: module.init(stream_key(key, name), tokens)["params"] for name in ("agent", "alone")}
    opt_state = {name: optimizer.init(params[name]) for name in params}
    return State(jnp.zeros([], jnp.int32), key, params, opt_state)

  def step(state: State, batch):
    params, opt_state, metrics = {}, {}, {}
    for name, trace in traces(config, batch["world"], batch["goal"]).items():

      def objective(params, trace=trace):
        nats, own = own_nats(module, params, trace)
        return jnp.sum(nats) / jnp.sum(own)

      loss, grads = jax.value_and_grad(objective)(state.params[name])
      updates, opt_state[name] = optimizer.update(grads, state.opt_state[name], state.params[name])
      params[name] = optax.apply_updates(state.params[name], updates)
      metrics |= {f"{name}_loss": loss, f"{name}_grad_norm": optax.global_norm(grads)}
    metrics = {"loss": metrics.pop("agent_loss"), **metrics}
    return State(state.step + 1, state.key, params, opt_state), metrics

  def learned(state: State) -> dict[str, Any]:
    return {name: eval_params(state.opt_state[name], state.params[name]) for name in state.params}

  model = lambda state: Model(module, learned(state), config.terms, config.agents)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    worlds, goals, mask = batch["world"], batch["goal"], batch["mask"][:, None]
    found = {}
    for name, trace in traces(config, worlds, goals).items():
      nats, own = own_nats(module, learned(state)[name], trace)
      found["loss" if name == "agent" else "alone_loss"] = Mean(jnp.sum(nats * mask), jnp.sum(own * mask))
    faultless = traces(config, worlds, goals)["agent"]
    return found | measure_answers(model(state), worlds, goals, faultless, batch["mask"])

  def report(state: State, directory: Path) -> dict[str, float]:
    return report_agent(model(state), partial(draw_task, True, config), directory)

  return Experiment(init, step, evaluate, report, model=model)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
