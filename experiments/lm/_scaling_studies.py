"""The studies of lm.scaling: what is trained, and what is made of its losses."""

import bisect
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.lm._small_runs import Job, build, count, train_jobs
from mlnotes.data import Corpus
from mlnotes.engine.errors import InputError
from mlnotes.engine.record import read_json
from mlnotes.lm import LanguageModel, ScalingLaw, bootstrap_scaling_law, compute_optimal, fit_scaling_law

# Flags that say what a loss is of: runs that differ in one of them do not compare.
_SAME = ("dataset", "test_dataset", "documents", "tokenizer", "vocab_size", "end_token", "length", "objective",
         "train_split", "test_split")  # fmt: skip
_LEAST = 6  # runs, of which each constant of the law and one more


class Runs(NamedTuple):
  """(R,) each: parameters, tokens that were trained on, nats of a token of the test text."""

  parameters: Float[np.ndarray, " R"]
  tokens: Float[np.ndarray, " R"]
  losses: Float[np.ndarray, " R"]

  @property
  def flops(self) -> Float[np.ndarray, " R"]:
    """6 N D. Kaplan et al. 2020, sec. 2.1."""
    return 6 * self.parameters * self.tokens


def module_of(config: Any, corpus: Corpus, width: int) -> LanguageModel:
  return build(corpus.vocab_size, config.length, width, config.depth, config.heads)


def rate_of(config: Any, width: int) -> float:
  """--learning_rate is that of 64 features; wider networks take smaller ones, by the root."""
  return config.learning_rate * (64 / width) ** 0.5


def updates_of(tokens: int, batch_size: int, length: int) -> int:
  return max(1, round(tokens / (batch_size * length)))


# -- loss by size and tokens -------------------------------------------------------------------------------------------


def train_grid(config: Any, corpus: Corpus) -> Runs:
  """A run of each of --widths by each of --budgets and each seed, its schedule as long as itself."""
  found = []
  for width in config.widths:
    module = module_of(config, corpus, width)
    seeds = range(config.seed, config.seed + config.seeds)
    jobs = [
      Job(updates_of(budget, config.batch_size, config.length), rate_of(config, width), seed)
      for budget in config.budgets
      for seed in seeds
    ]
    losses = train_jobs(module, corpus, jobs, config.batch_size, config.eval_examples).mean((1, 2))
    size = count(module)
    tokens = [job.updates * config.batch_size * config.length for job in jobs]
    found += [(size, n, loss) for n, loss in zip(tokens, losses)]
    print(f"{size:>9,} parameters: " + ", ".join(f"{loss:.3f}" for loss in losses) + " nats", flush=True)
  return Runs(*np.array(found, np.float64).T)


def read_runs(folder: str) -> Runs:
  """Finished causal runs of lm.pretrain anywhere below a folder, as launch.sweep leaves them: a point for each seed.

  Raises InputError where there are fewer than six, where they are of different texts, tokens or lengths, and where all
  have one size or one number of tokens.
  """
  root, said = Path(folder).expanduser(), f"--runs={folder}"
  found, same = [], {}
  for path in sorted(root.rglob("result.json")):
    try:
      card = read_json(path)
      config = card["config"]
      if card.get("experiment") != "lm.pretrain" or not card.get("finished"):
        continue
      if sized := "parameters" in card["metrics"]:
        sizes = float(card["metrics"]["parameters"]["mean"])
      losses = [x for x in card["metrics"]["loss"]["seeds"] if x is not None]
      tokens = float(card["steps"] * config["batch_size"] * config["length"])
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
      raise InputError(f"{said}: {path} is no result card of lm.pretrain: {error}.") from error
    if not sized:
      raise InputError(f"{said}: {path.parent} does not say its size, expected a run with a report (--report_seeds=1).")
    if config.get("objective") != "causal":
      raise InputError(f"{said}: {path.parent} learned by --objective={config.get('objective')}, expected causal.")
    for name in _SAME:
      first, where = same.setdefault(name, (config.get(name), path.parent))
      if config.get(name) != first:
        raise InputError(
          f"{said}: {path.parent} has --{name}={config.get(name)}, {where} {first}: their losses do not compare."
        )
    found += [(sizes, tokens, loss) for loss in losses]
  if len(found) < _LEAST:
    raise InputError(f"{said} has {len(found)} finished runs of lm.pretrain: expected {_LEAST} or more.")
  runs = Runs(*np.array(found, np.float64).T)
  for name, values in (("size", runs.parameters), ("number of tokens", runs.tokens)):
    if len(set(values)) < 2:
      raise InputError(f"{said}: all runs have one {name}, {values[0]:,.0f}: expected several.")
  return runs


class Fitted(NamedTuple):
  law: ScalingLaw
  draws: list[ScalingLaw]

  def band(self, f: Any) -> tuple[Any, Any]:
    """The 10th and 90th percentile over the draws of what `f` makes of a law."""
    values = np.array([f(law) for law in self.draws])
    return np.percentile(values, 10, axis=0), np.percentile(values, 90, axis=0)


def fit(runs: Runs, draws: int, seed: int) -> tuple[Fitted, dict[str, float]]:
  """(the law with its draws, figures): constants and the best size for the largest run's arithmetic, with intervals.

  With intervals of 80 %: `/low` and `/high`. `optimal_exponent` is that of N by C, beta / (alpha + beta).
  """
  law, _ = fit_scaling_law(*runs)
  fitted = Fitted(law, bootstrap_scaling_law(*runs, draws=draws, seed=seed))
  flops = float(runs.flops.max())
  of = {name: lambda law, name=name: getattr(law, name) for name in law._fields}
  of["optimal_exponent"] = lambda law: law.beta / (law.alpha + law.beta)
  of["optimal_parameters"] = lambda law: compute_optimal(law, flops)[0]
  of["optimal_tokens"] = lambda law: compute_optimal(law, flops)[1]
  figures: dict[str, float] = {"runs": len(runs.losses), "flops": flops}
  for name, f in of.items():
    low, high = fitted.band(f)
    figures |= {name: float(f(law)), f"{name}/low": float(low), f"{name}/high": float(high)}
  error = np.log(runs.losses) - np.log(law(runs.parameters, runs.tokens))
  figures["fit_error"] = float(np.sqrt(np.mean(error**2)))
  return fitted, figures


# -- what else a run may have more of ----------------------------------------------------------------------------------


class Batches(NamedTuple):
  """`losses` (sizes, rates, seeds) at equal tokens; `rates` (sizes, rates), `updates` (sizes,)."""

  sizes: tuple[int, ...]
  rates: Float[np.ndarray, "B R"]
  updates: tuple[int, ...]
  losses: Float[np.ndarray, "B R S"]

  @property
  def best(self) -> Any:
    """Which rate is the best of each size, over seeds."""
    return self.losses.mean(-1).argmin(-1)


FACTORS = (0.5, 1.0, 2.0)


def train_batches(config: Any, corpus: Corpus) -> Batches:
  """Each of --batch_sizes by three rates around one that grows with the root of the batch, --tokens tokens each."""
  module, seeds = module_of(config, corpus, config.width), range(config.seed, config.seed + config.seeds)
  rates, updates, losses = [], [], []
  for size in config.batch_sizes:
    middle = rate_of(config, config.width) * (size / config.batch_size) ** 0.5
    rates.append([middle * factor for factor in FACTORS])
    updates.append(updates_of(config.tokens, size, config.length))
    jobs = [Job(updates[-1], rate, seed) for rate in rates[-1] for seed in seeds]
    found = train_jobs(module, corpus, jobs, size, config.eval_examples).mean((1, 2))
    losses.append(found.reshape(len(FACTORS), len(seeds)))
    print(f"batches of {size}: {losses[-1].mean(-1).min():.3f} nats, {updates[-1]} updates", flush=True)
  return Batches(config.batch_sizes, np.array(rates), tuple(updates), np.array(losses))


class Epochs(NamedTuple):
  """Nats after --tokens tokens of a text so many times as short, and after one pass over it: (E, S) each."""

  epochs: tuple[int, ...]
  repeated: Float[np.ndarray, "E S"]
  once: Float[np.ndarray, "E S"]


def train_epochs(config: Any, corpus: Corpus) -> Epochs:
  """--tokens tokens as passes over fewer unique ones, and each text read once. Muennighoff et al. 2023, sec. 5."""
  module, rate = module_of(config, corpus, config.width), rate_of(config, config.width)
  updates = updates_of(config.tokens, config.batch_size, config.length)
  unique = [max(config.batch_size, updates * config.batch_size // epochs) for epochs in config.epochs]
  seeds = range(config.seed, config.seed + config.seeds)
  repeated = [[Job(updates, rate, seed, windows) for seed in seeds] for windows in unique]
  once = [[Job(windows // config.batch_size, rate, seed, windows) for seed in seeds] for windows in unique]
  jobs = list(dict.fromkeys(job for rows in (*repeated, *once) for job in rows))  # of one pass the two are the same
  losses = dict(zip(jobs, train_jobs(module, corpus, jobs, config.batch_size, config.eval_examples).mean((1, 2))))
  return Epochs(config.epochs, *(np.array([[losses[job] for job in row] for row in rows]) for rows in (repeated, once)))


class Ensembles(NamedTuple):
  """For each number of members: their width, parameters together, nats of the mean probability and of each alone."""

  members: tuple[int, ...]
  widths: tuple[int, ...]
  parameters: tuple[int, ...]
  together: Float[np.ndarray, " E"]
  alone: list[Float[np.ndarray, " K"]]


def mix_losses(losses: Float[np.ndarray, "K *T"]) -> Float[np.ndarray, "*T"]:
  """Nats of each token by the mean of the probabilities that K models give it."""
  least = losses.min(0)
  return least - np.log(np.mean(np.exp(least - losses), 0))


def find_width(config: Any, corpus: Corpus, members: int) -> int:
  """The width of which so many networks have nearest to as many parameters as one of --width."""
  whole, step = count(module_of(config, corpus, config.width)), 2 * config.heads
  widths = range(step, config.width + 1, step)
  together = lambda width: members * count(module_of(config, corpus, width))
  above = bisect.bisect_left(widths, whole, key=together)
  return min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(together(width) - whole))


def train_ensembles(config: Any, corpus: Corpus) -> Ensembles:
  """--width alone beside several narrower networks of as many parameters together, which each read --tokens tokens."""
  rows = []
  for members in config.members:
    width = find_width(config, corpus, members)
    module = module_of(config, corpus, width)
    updates = updates_of(config.tokens, config.batch_size, config.length)
    jobs = [Job(updates, rate_of(config, width), config.seed + i) for i in range(members)]
    losses = train_jobs(module, corpus, jobs, config.batch_size, config.eval_examples)
    rows.append((width, members * count(module), mix_losses(losses).mean(), losses.mean((1, 2))))
    print(f"{members} of width {width}: {rows[-1][2]:.3f} nats together, {rows[-1][3].mean():.3f} alone", flush=True)
  widths, parameters, together, alone = zip(*rows)
  return Ensembles(config.members, widths, parameters, np.array(together), list(alone))
