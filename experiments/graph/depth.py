"""What depth costs a graph network, and what helps: plain GCNs, DropEdge, residuals and initial residuals (GCNII).

  python -m experiments.graph.depth                                      # a stochastic block model, minutes
  python -m experiments.graph.depth --dataset=cora.npz --depths=2,4,8,16,32 --seeds=3
  python -m experiments.graph.depth --kinds=plain,gcnii --depths=2,16

Every network is trained as `experiments.graph.nodes` trains it, all seeds in one program. Writes depth.png (accuracy by
depth, the energy of each layer of the deepest networks) and table.md. The energy is the Dirichlet energy of a layer's
output over its squared norm: 0 where all nodes are alike but for their degrees.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.graph import nodes
from experiments.graph._node_views import view_whole
from mlnotes import graph as graphs
from mlnotes.data.flags import GraphConfig, load_data
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import field, run
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.program import Program, make_mesh
from mlnotes.engine.progress import report_step
from mlnotes.engine.study import run_study

# What each kind is by the flags of graph.nodes, whose published settings of gcnii these are but for the layers.
KINDS: dict[str, dict[str, Any]] = {
  "plain": dict(layer="gcn"),
  "drop_edge": dict(layer="gcn", drop_edge=0.5),
  "residual": dict(layer="gcn", residual="skip"),
  "gcnii": dict(layer="gcnii", dropout=0.6, l2=1e-2, l2_of="inner"),
}
_COLORS = {"plain": "tab:gray", "drop_edge": "tab:orange", "residual": "tab:blue", "gcnii": "tab:green"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GraphConfig):
  """Defaults: a block model of 400 nodes in a few minutes on two CPU cores."""

  dataset: str = "sbm"
  nodes: int = 400
  p_within: float = 0.05
  p_between: float = 0.01
  workdir: str = field("", "directory of picture, table and figures; empty: runs/graph.depth-<dataset>", free=True)
  kinds: tuple[str, ...] = field(tuple(KINDS), f"which: {', '.join(KINDS)}")
  depths: tuple[int, ...] = field((2, 4, 8, 16), "layers; of gcnii those between two linear ones")
  hidden: int = field(64, "features of each layer but the last")
  steps: int = field(200, "updates of each network")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(2, "networks of each kind and depth")

  def __post_init__(self):
    super().__post_init__()
    require(len(self.kinds) > 0, "kinds", "", "one or more")
    for name in self.kinds:
      if name not in KINDS:
        raise InputError(f"--kinds={name} is no kind: {nearest(name, KINDS)}")
    for name in ("kinds", "depths"):
      values = getattr(self, name)
      once = len(values) > 0 and len(set(values)) == len(values)
      require(once, name, ",".join(map(str, values)), "one or more, each once")
    require(min(self.depths) >= 2, "depths", min(self.depths), "2 or more")
    for name in ("hidden", "steps", "seeds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")

  def cpu_layout(self, cores: int):
    return nodes.Config(seeds=self.seeds).cpu_layout(cores)


class Found(NamedTuple):
  """Of each seed: test accuracy of the last epoch and of the best by validation, energy by layer."""

  last: Float[np.ndarray, " S"]
  best: Float[np.ndarray, " S"]
  energy: Float[np.ndarray, "S L"]


def node_config(config: Config, kind: str, depth: int) -> nodes.Config:
  """The flags of graph.nodes that train this kind of network."""
  graph = {item.name: getattr(config, item.name) for item in dataclasses.fields(GraphConfig)}
  return nodes.Config(**graph, **KINDS[kind], layers=depth, hidden=config.hidden, steps=config.steps)


def measure(config: Config, kind: str, depth: int) -> Found:
  settings = node_config(config, kind, depth)
  experiment, feeds = nodes.make(settings), nodes.make_feeds(settings)
  seeds = range(config.seed, config.seed + config.seeds)
  program = Program(experiment, feeds, seeds, make_mesh(0))
  state, _ = program.update(program.init(), program.empty_window(), settings.steps)
  figures = {name: np.atleast_1d(np.asarray(value)) for name, value in program.evaluate(state).items()}
  params = state.params if config.seeds > 1 else jax.tree.map(lambda x: x[None], state.params)
  energy = layer_energies(settings, jax.tree.map(np.asarray, params), feeds.evaluate.arrays)
  return Found(figures["test_accuracy_last"], figures["test_accuracy_best_valid"], energy)


def layer_energies(settings: nodes.Config, params: Any, batch: Any) -> Float[np.ndarray, "S L"]:
  """The relative energy of every layer's output, without dropout, of each seed."""
  network = nodes.make_network(settings, load_data(settings).num_classes)

  @jax.jit
  def each(params, batch):
    _, sown = network.apply({"params": params}, view_whole(settings, batch), mutable=["intermediates"])
    return jnp.stack([graphs.relative_energy(batch["edges"], h) for h in sown["intermediates"]["hidden"]])

  count = len(jax.tree.leaves(params)[0])
  return np.stack([np.asarray(each(jax.tree.map(lambda x, i=i: x[i], params), batch)) for i in range(count)])


def main(config: Config) -> int:
  data = load_data(config)
  for kind in config.kinds:
    nodes.make(node_config(config, kind, config.depths[0]))

  def study(directory: Path) -> dict[str, Any]:
    found = {}
    for kind in config.kinds:
      for depth in config.depths:
        report_step(f"{kind}, {depth} layers")
        found[kind, depth] = measure(config, kind, depth)
    _write_table(found, config, directory / "table.md")
    _draw(found, config, data.name, directory / "depth.png")
    spell = lambda values: values.tolist() if len(values) > 1 else float(values[0])
    figures = {}
    for (kind, depth), one in found.items():
      figures[f"{kind}_{depth}/test_accuracy_last"] = spell(one.last)
      figures[f"{kind}_{depth}/test_accuracy_best_valid"] = spell(one.best)
      figures[f"{kind}_{depth}/energy_before_last"] = spell(one.energy[:, -2])
    return figures

  return run_study("graph.depth", config, study, f"-{Path(config.dataset).stem}")


def _write_table(found: dict[tuple[str, int], Found], config: Config, path: Path) -> None:
  """Test accuracy of the last epoch by kind and depth, in per cent."""
  lines = ["| layers | " + " | ".join(map(str, config.depths)) + " |", "|---" * (len(config.depths) + 1) + "|"]
  for kind in config.kinds:
    cells = []
    for depth in config.depths:
      values = 100 * found[kind, depth].last
      spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
      cells.append(f"{values.mean():.1f}{spread}")
    lines.append(f"| {kind} | " + " | ".join(cells) + " |")
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  print("\n".join(lines), flush=True)


def _draw(found: dict[tuple[str, int], Found], config: Config, name: str, path: Path) -> None:
  depths = sorted(config.depths)
  deepest = depths[-1]
  figure, axes = new_figure(1, 2, width=9.6, height=3.8)
  for kind in config.kinds:
    accuracy = np.stack([found[kind, depth].last for depth in depths])
    mean, spread = accuracy.mean(1), accuracy.std(1, ddof=1) if accuracy.shape[1] > 1 else 0 * accuracy[:, 0]
    axes[0, 0].errorbar(depths, mean, spread, marker="o", markersize=4, capsize=2, color=_COLORS[kind], label=kind)
    energy = np.maximum(found[kind, deepest].energy.mean(0), 1e-8)
    axes[0, 1].plot(np.arange(1, len(energy) + 1), energy, marker=".", color=_COLORS[kind], label=kind)
  axes[0, 0].set_xscale("log", base=2)
  axes[0, 0].set_xticks(depths, map(str, depths))
  axes[0, 0].set_xlabel("layers")
  axes[0, 0].set_title(f"{name}: test accuracy, last epoch", fontsize=9)
  axes[0, 1].set_yscale("log")
  axes[0, 1].set_xlabel("layer")
  axes[0, 1].set_title(f"energy over squared norm in networks of {deepest} layers", fontsize=9)
  axes[0, 0].legend(frameon=False, fontsize=8)
  save_figure(figure, path)


if __name__ == "__main__":
  run(main, Config)
