"""What a generator of sequences has made: figures beside their floors, and pictures of quality against diversity."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from experiments.generative._text_world import World, held_sequences
from mlnotes import generative
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.plot import as_text, new_figure, save_figure
from mlnotes.engine.progress import report_step, warn
from mlnotes.engine.record import read_curves

_SHOWN = 20
_COLORS = {"real": "tab:green", "bigram": "0.45", "unigram": "0.7"}


def describe_collapse(read: float, unigram: float, distinct: float, real: float) -> str:
  """The sentence about a generator that has lost the data's diversity; "" for one that has not."""
  if not read <= unigram:
    return (
      f"collapsed: the data cost the generator {read:.2f} nats a token, frequencies of single tokens {unigram:.2f}."
    )
  if distinct < real / 2:
    return (
      f"collapsed: {distinct:.0%} of the generated sequences differ from all others before, {real:.0%} of real ones."
    )
  return ""


def distinct_share(tokens: Int[np.ndarray, "N T"]) -> float:
  """How many different sequences there are, as a share of all."""
  return len(np.unique(tokens, axis=0)) / len(tokens)


def find_floors(
  train: Int[np.ndarray, "N T"], test: Int[np.ndarray, "M T"], world: World, config: Any, key: Key[Array, ""]
) -> dict[str, float]:
  """Both figures of models that need no descent, `_unigram` and `_bigram`, and of the data: `_real`.

  What real sequences cost the judge is its own entropy where it has drawn them, and then also the least that they can
  cost a generator.
  """
  nats = jax.jit(world.nats)
  judge, protocol = f"{world.judge_name}_nll_{config.protocol}", f"generator_nll_{config.protocol}"
  figures = {f"{judge}_real": float(jnp.mean(nats(jnp.asarray(test))))}
  uniform = jax.random.uniform(key, test.shape)
  for name, table in zip(("unigram", "bigram"), generative.fit_tables(train, world.vocabulary)):
    policy = generative.make_table_policy(jnp.asarray(table))
    figures[f"{protocol}_{name}"] = float(-jnp.mean(generative.token_log_probability(policy, jnp.asarray(test))))
    figures[f"{judge}_{name}"] = float(jnp.mean(nats(generative.sample_sequences(policy, uniform))))
  return figures


def report_writer(writer: Any, key: Key[Array, ""], world: World, config: Any, directory: Path) -> dict[str, float]:
  """Writes learning.png, and of a text sequences.txt; returns the figures, each beside that of real sequences."""
  train, test = held_sequences(config, world)
  count = len(test)
  report_step(f"floors, {count} sequences")
  figures = find_floors(train, test, world, config, stream_key(key, "floors"))
  sample = jax.jit(lambda writer, key: writer.sample(key, count, config.eval_temperature))
  tokens = np.asarray(sample(writer, stream_key(key, "sequences")))
  of_data, protocol = f"generator_nll_{config.protocol}", config.protocol
  z = jax.random.normal(stream_key(key, "likelihood"), (config.likelihood_codes, config.latent))
  nats = jax.jit(lambda writer, tokens: writer.nats(tokens, z, config.eval_temperature))
  read = float(jnp.mean(nats(writer, jnp.asarray(test))))
  figures |= {f"distinct_{count}_{protocol}": distinct_share(tokens), f"distinct_{count}_real": distinct_share(test)}
  said = describe_collapse(
    read, figures[f"{of_data}_unigram"], figures[f"distinct_{count}_{protocol}"], figures[f"distinct_{count}_real"]
  )
  figures["collapsed"] = float(bool(said))
  if said:
    warn(said)
  draw_learning(directory, figures, world, config, directory / "learning.png")
  if world.corpus:
    lines = [world.corpus.tokenizer.decode(row) for row in (*tokens[:_SHOWN], *test[:_SHOWN])]
    text = "\n".join(["generated", *map(repr, lines[:_SHOWN]), "", "real", *map(repr, lines[_SHOWN:])])
    (directory / "sequences.txt").write_text(text + "\n", encoding="utf-8")
  return figures


def draw_learning(directory: Path, figures: dict[str, float], world: World, config: Any, path: Path) -> None:
  """Both figures over the updates, with the end of the pretraining marked, and the one against the other."""
  curves = read_curves(directory, config)
  names = {
    f"{world.judge_name}_nll_{config.protocol}": f"generated sequences under the {world.judge_name} (quality)",
    f"generator_nll_{config.protocol}": "real sequences under the generator (diversity)",
  }
  found = [curves.get(f"eval/{name}") for name in names]
  if any(curve is None for curve in found):
    return
  real = figures[f"{world.judge_name}_nll_{config.protocol}_real"]
  # Bigrams that judge a text are no bound for who reads it.
  floors = lambda name: {
    what: value
    for what in _COLORS
    if (value := figures.get(f"{name}_{what}", real if world.corpus is None else None)) is not None
  }
  figure, axes = new_figure(1, 3, width=12.5, height=3.7)
  for axis, (name, title), curve in zip(axes[0], names.items(), found):
    axis.plot(*curve, color="tab:blue", linewidth=1.3)
    for what, value in floors(name).items():
      axis.axhline(value, color=_COLORS[what], linestyle="--", linewidth=1, label=what)
    _mark_game(axis, config)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("update")
    axis.set_ylabel("nats a token")
    axis.legend(frameon=False, fontsize=8)
  axis, (quality, diversity) = axes[0, 2], found
  axis.plot(quality[1], diversity[1], "-", color="0.6", linewidth=0.8)
  game = (quality[0] > config.game_begins) & config.plays
  for part, color, label in ((~game, "tab:blue", "maximum likelihood"), (game, "tab:red", "the game")):
    if np.any(part):
      axis.scatter(quality[1][part], diversity[1][part], s=14, color=color, label=label, zorder=3)
  for what in _COLORS:
    point = [floors(name).get(what) for name in names]
    if None not in point:
      axis.scatter(*point, marker="*" if what == "real" else "s", s=60, color=_COLORS[what], label=what, zorder=4)
  axis.set_xlabel("generated: nats a token")
  axis.set_ylabel("real: nats a token")
  axis.set_title("both, the better the lower and further left", fontsize=9)
  axis.legend(frameon=False, fontsize=8)
  of = world.corpus.name if world.corpus else "a random oracle"
  figure.suptitle(as_text(f"{config.method}, {of}, temperature {config.eval_temperature:g}"), fontsize=10)
  save_figure(figure, path)


def _mark_game(axis: Any, config: Any) -> None:
  if config.plays:
    axis.axvline(config.game_begins, color="tab:red", linewidth=1, label="the game begins")
