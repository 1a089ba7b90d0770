"""A small decoder that learns to calculate, with the steps written out ahead of the answer or without them.

  python -m experiments.lm.chain_of_thought                                # 4 by 2 digits, steps ahead of the answer
  python -m experiments.lm.chain_of_thought --thought=none                 # the answer alone, from as many tokens
  python -m experiments.lm.chain_of_thought --task=addition --digits=8

Problems are drawn on the device, but for a tenth of all pairs of numbers, chosen by a hash of them: these are tested
on. Only what stands behind the prompt is learned, and the last answer alone is scored, by exact match, of what the
model writes by itself. Writes accuracy.png: how often the answer is right by the tokens that were written for it, the
majority of several drawn solutions included, by the carries and by the place of a digit; and traces.txt, problems with
what was written.
Steps as in a scratchpad, Nye et al. 2021; the majority is self-consistency, Wang et al. 2023.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, Key

from experiments.lm._task import Applied
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import PRNG_IMPL, Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import Generated, LanguageModel, Objective, Sampling, compute_gradients, generate, make_gpt2, make_llama
from mlnotes.lm.objective import make_head, read_hidden, score_words
from mlnotes.lm.tasks import Form, decode_tokens, draw_problem, majority_answer, read_answer, write_solution
from mlnotes.lm.tasks.arithmetic import ALPHABET, END, PAD, Task, Thought
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

# Of the test problems, and of the solutions that are drawn to vote: the same in every run.
_TEST_SEED, _VOTE_SEED = 0, 1
_SHOWN = 12  # problems of traces.txt
_AT_ONCE = 512  # solutions that are written side by side
_VOTERS = (1, 2, 3, 5, 10, 20, 40, 80, 160)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: products of four digits by two with their steps, minutes on two CPU cores."""

  UNIT: ClassVar[str] = "problems"
  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  task: Task = field("multiplication", "what is calculated")
  digits: int = field(4, "of the first number, zeros in front included")
  second_digits: int = field(2, "of the second number; its default for --task=addition is --digits")
  thought: Thought = field("steps", "what is written ahead of the answer; none: nothing")
  model: Literal["gpt2", "llama"] = field("gpt2", "learned positions, layer norms and GELU; or rotary ones and SwiGLU")
  depth: int = field(2, "layers")
  heads: int = field(4, "heads, a divisor of --width, into even numbers for --model=llama")
  width: int = field(64, "features of a token")
  batch_size: int = field(64, "problems per update; the default for --thought=none has as many tokens as with steps")
  test_problems: int = field(512, "problems of the evaluation, none of which is ever trained on")
  samples: int = field(20, "solutions drawn for each of --vote_problems, for their majority; 0: none", free="report")
  vote_problems: int = field(64, "test problems that solutions are drawn for, at most all", free="report")
  temperature: float = field(1.0, "that solutions are drawn at, > 0", free="report")

  steps: int = 1500
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.1
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  log_every: int = 100
  eval_every: int = 500

  def __post_init__(self):
    super().__post_init__()
    for name in ("digits", "second_digits", "depth", "heads", "width", "batch_size", "test_problems", "vote_problems"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    enough = self.digits + self.second_digits >= 3
    require(enough, "digits", self.digits, "2 or more beside --second_digits=1: problems that can be held out")
    for name in ("digits", "second_digits"):
      require(getattr(self, name) <= 64, name, getattr(self, name), "at most 64")
    into = " into even numbers" if self.model == "llama" else ""
    even = self.width % self.heads == 0 and (not into or self.width // self.heads % 2 == 0)
    require(even, "heads", self.heads, f"a divisor of --width={self.width}{into}")
    require(self.samples >= 0, "samples", self.samples, "0 or more")
    require(self.temperature > 0, "temperature", self.temperature, "a number above 0")

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    """Numbers of one size are added. Without steps there are more problems in a batch: as many tokens in all."""
    defaults = {}
    if given.get("task") == "addition":
      defaults["second_digits"] = given.get("digits", cls.digits)
    if given.get("thought") == "none":
      form = make_form(super().tuned(**{**defaults, **given}))
      defaults["batch_size"] = round(cls.batch_size * form._replace(thought="steps").size / form.size)
    return super().tuned(**{**defaults, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    if not self.samples:
      idle |= dict.fromkeys(("vote_problems", "temperature"), "--samples=0 draws no solutions")
    return idle


def make_form(config: Config) -> Form:
  return Form(config.task, config.digits, config.second_digits, config.thought)


def make_feeds(config: Config) -> Feeds:
  form = make_form(config)
  learned = lambda key, arrays: write_solution(form, draw_problem(key, form, held_out=False))._asdict()
  tested = lambda key, arrays: write_solution(form, draw_problem(key, form, held_out=True))._asdict()
  evaluate = make_drawn_eval(tested, (), _TEST_SEED, config.test_problems, config.batch_size)
  return Feeds(make_drawn_feed(learned, (), config.batch_size, "problems"), evaluate, split="test")


def make_objective(module: LanguageModel, prompt: int) -> Objective:
  """Each token behind the first `prompt` ones from all before it; of the prompt nothing is foretold."""

  def terms(params, examples, key):
    tokens = examples["tokens"]
    hidden, _ = read_hidden(module, params, tokens[:, :-1], None, key)
    asked = tokens[:, prompt:]
    said = score_words(make_head(module, params, key), hidden[:, prompt - 1 :], asked, jnp.ones(asked.shape))
    return {"loss": said["loss"], "token_accuracy": said["accuracy"]}

  return Objective(
    init=lambda key, examples: module.init(key, examples["tokens"][:, :-1])["params"],
    prepare=lambda key, tokens: {"tokens": tokens},
    terms=terms,
    weights={"loss": 1.0},
  )


def build_module(config: Config) -> LanguageModel:
  form = {"gpt2": make_gpt2, "llama": make_llama}[config.model]
  sizes = (len(ALPHABET), make_form(config).size - 1, config.depth, config.heads, config.width)
  return form(*sizes, dtype=jnp.dtype(config.precision))


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


class Scores(NamedTuple):
  """Of what was written for B problems.

  Attributes:
    digits: which digits of the answer are right, the largest place first.
    right: whether all are, in an answer that is complete.
    trace: whether all that was written is as it has to be.
    length: tokens that were written.
  """

  digits: Bool[Array, "B A"]
  right: Bool[Array, " B"]
  trace: Bool[Array, " B"]
  length: Int[Array, " B"]


def write(config: Config, module: LanguageModel, params: Any, prompts: Int[Array, "B P"], keys=None) -> Generated:
  """What the model writes behind the prompts: the likeliest token each time, or drawn where there are keys."""
  sampling = Sampling() if keys is None else Sampling(config.temperature)
  size = make_form(config).trace_size
  return generate(module, {"params": params}, prompts, None, keys, size, sampling, END, PAD)


def score_written(form: Form, problems: Any, written: Generated) -> Scores:
  """The last answer alone counts, whatever stands before it."""
  answers, complete = jax.vmap(lambda said: read_answer(form, said))(written.tokens)
  digits = (answers == problems["answer"]) & complete[:, None]
  trace = jnp.all(written.tokens == problems["tokens"][:, form.prompt_size :], 1)
  return Scores(digits, jnp.all(digits, 1), trace, written.length)


def make(config: Config) -> Experiment:
  form, module = make_form(config), build_module(config)
  objective, optimizer = make_objective(module, form.prompt_size), make_optimizer(config, config.steps)
  learned = lambda state: eval_params(state.opt_state, state.params)

  def init(key, batch) -> State:
    params = objective.init(stream_key(key, "init"), batch)
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    grads, metrics = compute_gradients(objective, state.params, batch, stream_key(state.key, "dropout", state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": metrics["loss"], "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """Nats of a token of the trace; of what the model writes: answers that are right, traces that are, tokens."""
    params, mask = learned(state), batch["mask"]
    terms = objective.terms(params, batch, None)
    scores = score_written(form, batch, write(config, module, params, batch["tokens"][:, : form.prompt_size]))
    over = lambda x: Mean(jnp.sum(x * mask), jnp.sum(mask))
    found = {name: Mean(*(jnp.sum(x * mask) for x in mean)) for name, mean in terms.items()}
    found |= {"accuracy": over(scores.right), "tokens": over(scores.length)}
    return found | ({"right_traces": over(scores.trace)} if config.thought == "steps" else {})

  def report(state: State, directory: Path) -> dict[str, float]:
    params = learned(state)
    problems = draw_tests(config)
    greedy, scores = write_tests(config, module, params, problems)
    votes = count_votes(config, module, params, problems)
    show_traces(form, problems, greedy, scores, directory / "traces.txt")
    draw_accuracy(config, problems, scores, votes, directory / "accuracy.png")
    found = {f"accuracy_of_{count}": right for count, (right, _) in votes.items()}
    problems_read = float(config.steps) * config.batch_size
    found |= {"problems_read": problems_read, "tokens_read": problems_read * (form.size - 1)}
    return found | ({"tokens_of_vote": max(tokens for _, tokens in votes.values())} if votes else {})

  return Experiment(init, step, evaluate, report, model=lambda state: Applied(module, learned(state)))


def draw_tests(config: Config) -> dict[str, np.ndarray]:
  """All test problems, those of the evaluation."""
  given = make_feeds(config).evaluate
  draw = jax.jit(lambda i: given.draw(given.arrays, i))
  parts = [jax.device_get(draw(i)) for i in range(given.num_batches)]
  return {name: np.concatenate([part[name] for part in parts])[: config.test_problems] for name in parts[0]}


def write_tests(config: Config, module: LanguageModel, params: Any, problems: Any) -> tuple[Generated, Scores]:
  form = make_form(config)

  @jax.jit
  def one(params, part):
    written = write(config, module, params, part["tokens"][:, : form.prompt_size])
    return written, score_written(form, part, written)

  return _in_parts(lambda part: one(params, part), problems)


def _in_parts(f, arrays: Any) -> Any:
  """`f` over parts of `_AT_ONCE` rows at most, the last filled up with its last row."""
  rows = len(jax.tree.leaves(arrays)[0])
  size = min(rows, _AT_ONCE)
  take = lambda chosen: jax.tree.map(lambda x: x[chosen], arrays)
  parts = [take(np.minimum(np.arange(start, start + size), rows - 1)) for start in range(0, rows, size)]
  found = [jax.device_get(f(part)) for part in parts]
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *found)


def count_votes(config: Config, module: LanguageModel, params: Any, problems: Any) -> dict[int, tuple[float, float]]:
  """{solutions: (how often the answer of their majority is right, tokens that they have together)}.

  Of fewer solutions than were drawn, the mean over all groups of so many in a row.
  """
  if not config.samples:
    return {}
  form, count, drawn = make_form(config), min(config.vote_problems, config.test_problems), config.samples
  keys = jax.random.split(stream_key(root_key(_VOTE_SEED), "solutions"), count * drawn)
  prompts = np.repeat(problems["tokens"][:count, : form.prompt_size], drawn, 0)

  @jax.jit
  def one(params, part):
    written = write(config, module, params, part["prompts"], jax.random.wrap_key_data(part["keys"], impl=PRNG_IMPL))
    return *jax.vmap(lambda said: read_answer(form, said))(written.tokens), written.length

  given = {"prompts": prompts, "keys": np.asarray(jax.random.key_data(keys))}
  found = _in_parts(lambda part: one(params, part), given)
  answers, complete, length = (x.reshape(count, drawn, *x.shape[1:]) for x in found)
  right = np.all(answers == problems["answer"][:count, None], -1) & complete
  return {n: (vote(answers, complete, right, n), n * float(length.mean())) for n in voters(drawn)}


def voters(drawn: int) -> list[int]:
  return sorted({n for n in _VOTERS if n <= drawn} | {drawn})


def vote(answers: Int[np.ndarray, "B N A"], complete: Bool[np.ndarray, "B N"], right: Any, n: int) -> float:
  """How often the answer of n is right, over all groups of n solutions in a row that do not overlap."""
  groups = answers.shape[1] // n
  split = lambda x: jnp.asarray(x[:, : groups * n].reshape(-1, n, *x.shape[2:]))
  chosen = jax.jit(jax.vmap(majority_answer))(split(answers), split(complete))
  return float(jnp.mean(jnp.take_along_axis(split(right), chosen[:, None], 1)))


def show_traces(form: Form, problems: Any, written: Generated, scores: Scores, path: Path) -> None:
  """The first problems, and the first of those whose answer is wrong."""
  wrong = np.flatnonzero(~scores.right)
  lines = [f"{np.mean(scores.right):.1%} of {len(scores.right)} answers are right, {len(wrong)} are wrong.", ""]
  for title, rows in (("The first problems", range(min(_SHOWN, len(scores.right)))), ("Wrong ones", wrong[:_SHOWN])):
    lines += [f"{title}:", ""] if len(rows) else []
    for i in rows:
      prompt, stood = np.split(problems["tokens"][i], [form.prompt_size])
      verdict = "right" if scores.right[i] else "wrong"
      verdict += "" if scores.trace[i] else f", expected {decode_tokens(stood)}"
      lines += [f"{decode_tokens(prompt)}{decode_tokens(written.tokens[i])}", f"  {verdict}", ""]
  path.write_text("\n".join(lines), encoding="utf-8")


def draw_accuracy(config: Config, problems: Any, scores: Scores, votes: Any, path: Path) -> None:
  """Right answers by the tokens written for them; by the carries; and of each digit of the answer."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 3, width=13.0, height=3.9)
  by_tokens, by_carries, by_place = axes[0]
  right = 100 * np.mean(scores.right)
  length = float(np.mean(scores.length))
  label = "likeliest tokens, all test problems"
  by_tokens.plot([length], [right], "*", color="C3", markersize=15, label=label, zorder=3)
  if votes:
    tokens, heights = [x for _, x in votes.values()], [100 * x for x, _ in votes.values()]
    count = min(config.vote_problems, config.test_problems)
    label = f"majority of so many drawn at temperature {config.temperature:g}, {count} problems"
    by_tokens.plot(tokens, heights, "o-", color="C0", label=label)
    for n, x, y in zip(votes, tokens, heights):
      by_tokens.annotate(f"{n}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    length = min(length, tokens[0])
  ticks = [length * 2**i for i in range(0, 10, 2) if not votes or length * 2**i < 1.5 * tokens[-1]]
  by_tokens.set(xscale="log", xlabel="tokens written for one problem", ylabel="answers that are right (%)")
  by_tokens.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
  by_tokens.set_xticks([], minor=True)
  by_tokens.set_title(f"{right:.1f} % right, {'with steps' if config.thought == 'steps' else 'the answer alone'}")
  by_tokens.legend(frameon=False, fontsize=7.5, loc="center right")

  carries, count = np.unique(problems["carries"], return_counts=True)
  heights = [100 * np.mean(scores.right[problems["carries"] == n]) for n in carries]
  by_carries.bar(carries, heights, color="C0")
  for n, height, many in zip(carries, heights, count):
    by_carries.annotate(f"{many}", (n, height), (0, 2), textcoords="offset points", ha="center", fontsize=7)
  by_carries.set(xlabel="columns that carry (above: problems)", xticks=carries, title="answers, by carries")
  places = np.arange(scores.digits.shape[1])
  by_place.bar(places, 100 * np.mean(scores.digits, 0), color="C0")
  by_place.set(xlabel="place in the answer, from the left", xticks=places, title="each digit by itself")
  by_place.set_xticklabels([f"$10^{{{n}}}$" for n in places[::-1]])
  for axis in axes[0]:
    axis.set(ylim=(-3, 112), yticks=range(0, 101, 20))
  form = make_form(config)
  sign = "+" if config.task == "addition" else "x"
  figure.suptitle(f"{form.digits} {sign} {form.second_digits} digits, numbers that were never trained on")
  save_figure(figure, path)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="accuracy", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
