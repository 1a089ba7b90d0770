"""Networks that tell nodes apart, of any layer of the chapter by its name."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlnotes.graph.attention import GraphAttention, MixtureConvolution
from mlnotes.graph.convolution import (
  GraphConvolution,
  GraphIsomorphism,
  GraphSage,
  InitialResidual,
  Linear,
  personalized_pagerank,
)
from mlnotes.graph.diffusion import DiffusionConvolution, DualDiffusion, NeuralNetworkForGraphs
from mlnotes.graph.edges import add_self_loops
from mlnotes.graph.hops import Hop, symmetric_weights
from mlnotes.graph.sparse import Rate, SparseMatrix, draw_kept, sparse_dropout
from mlnotes.graph.spectral import ChebyshevConvolution, SpectralConvolution

LayerName = Literal[
  "gcn", "gat", "gat2", "sage_mean", "sage_max", "sage_lstm", "gin", "monet", "gcnii",
  "chebyshev", "dgc", "nn4g", "appnp", "spectral", "mlp", "sgc", "dcnn",
]  # fmt: skip
Residual = Literal["none", "skip"]


class Kind(NamedTuple):
  """What a layer asks of the graph.

  reach: "hop", each layer asks the next neighbours; "whole", it needs every node; "prepared", what it takes from the
  graph is computed once, before anything is learned, and hangs on no other node then. loops: edges have them.
  """

  reach: Literal["hop", "whole", "prepared"]
  loops: bool = False


LAYERS: dict[str, Kind] = {
  "gcn": Kind("hop", True),
  "gat": Kind("hop", True),
  "gat2": Kind("hop", True),
  "sage_mean": Kind("hop"),
  "sage_max": Kind("hop"),
  "sage_lstm": Kind("hop"),
  "gin": Kind("hop"),
  "monet": Kind("hop", True),
  "gcnii": Kind("hop", True),
  "chebyshev": Kind("whole"),
  "dgc": Kind("whole"),
  "nn4g": Kind("whole"),
  "appnp": Kind("whole", True),
  "spectral": Kind("whole"),
  "mlp": Kind("prepared"),
  "sgc": Kind("prepared", True),
  "dcnn": Kind("prepared"),
}


class View(NamedTuple):
  """What a network sees: features x of the nodes that the first hop starts from, a hop for each layer.

  `rows` are the wanted nodes among those of the last hop (of x without hops); `basis` the eigenvalues and vectors of
  the Laplacian where the layer asks for them.
  """

  x: SparseMatrix | Float[Array, "N ..."]
  hops: tuple[Hop, ...]
  rows: Int[Array, " R"] | None = None
  basis: Any = None


# Above so many layers those between are one loop: unrolled, a network of 32 takes minutes to compile.
MOST_UNROLLED = 4


class _DeepLayer(nn.Module):
  """One of many layers between the first and the last, each as wide as its input; gives it behind ReLU and before."""

  kind: Literal["gcn", "gcnii"]
  residual: Residual

  @nn.compact
  def __call__(self, h, number, hop: Hop, first, rate: Rate | None):
    x = h if rate is None else h * draw_kept(self.make_rng("dropout"), h.shape, rate)
    weights = symmetric_weights(hop)
    if self.kind == "gcnii":
      new = InitialResidual(number, name="layer")(hop.edges, x, first, weights)
    else:
      new = GraphConvolution(h.shape[1], name="layer")(hop.edges, x, weights)
      if self.residual == "skip":
        h = nn.relu(new) + h
        return h, h
    return nn.relu(new), new


class NodeNetwork(nn.Module):
  """`layers` layers of one kind, the last of as many features as there are classes; logits of the wanted nodes.

  Dropout, a rate, is of each layer's input, sparse ones too, and of attention's weights, from the stream "dropout".
  ReLU between layers, ELU with attention, whose heads are concatenated but for the last layer's, which are averaged.
  Rows of sage's hidden layers have length 1, its logits are free (its authors have a linear layer behind the last).
  residual "skip": h + relu(layer(h)) between the first and the last layer, Kipf & Welling 2017, appendix B. nn4g,
  appnp, sgc, dcnn and mlp are put together as their papers have them; gcnii has `layers` of them between two linear
  ones. Every layer's output, before the activation and after a residual, is sown as "hidden" into intermediates. A gcn
  or gcnii of more than MOST_UNROLLED layers asks for hops that are all the same.
  """

  layer: LayerName
  num_classes: int
  hidden: int = 16
  layers: int = 2
  heads: int = 8
  last_heads: int = 1
  terms: int = 3
  teleport: float = 0.1
  residual: Residual = "none"

  @nn.compact
  def __call__(self, view: View, dropout: Rate | None = None) -> Float[Array, "R K"]:
    whole = {"appnp": self._pagerank, "nn4g": self._cascade, "gcnii": self._initial_residuals}
    prepared = {"sgc": self._linear, "dcnn": self._diffusion}
    logits = {**whole, **prepared}.get(self.layer, self._stack)(view, dropout)
    self.sow("intermediates", "hidden", logits)
    return logits if view.rows is None else logits[view.rows]

  def _drop(self, x: Any, rate: Rate | None) -> Any:
    if rate is None:
      return x
    key = self.make_rng("dropout")
    return sparse_dropout(key, x, rate) if isinstance(x, SparseMatrix) else x * draw_kept(key, x.shape, rate)

  def _stack(self, view: View, dropout: Rate | None) -> Float[Array, "R K"]:
    activate = nn.elu if self.layer in ("gat", "gat2") else nn.relu
    h, deep = view.x, self.layer == "gcn" and self.layers > MOST_UNROLLED
    for i in range(self.layers):
      last = i + 1 == self.layers
      if deep and i == 1:
        h = self._repeat(h, self.layers - 2, view.hops[0], h, dropout)
      if deep and 0 < i < self.layers - 1:
        continue
      hop = view.hops[i] if view.hops else None
      new = self._layer(i, last)(self._drop(h, dropout), hop, view, dropout)
      if last:
        return new
      if self.residual == "skip" and i > 0 and h.shape[1] == new.shape[1]:
        h = new = activate(new) + h[: new.shape[0]]
      else:
        h = activate(new)
      self.sow("intermediates", "hidden", new)

  def _repeat(self, h: Array, count: int, hop: Hop, first: Array, dropout: Rate | None) -> Float[Array, "N F"]:
    """`count` layers in a loop, with parameters of their own."""
    scanned = nn.scan(
      _DeepLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
    )
    h, each = scanned(self.layer, self.residual, name="middle")(h, 1.0 + jnp.arange(count), hop, first, dropout)
    for new in each:
      self.sow("intermediates", "hidden", new)
    return h

  def _layer(self, i: int, last: bool) -> Any:
    """A function of (x, hop, view, dropout)."""
    width = self.num_classes if last else self.hidden
    name, kind = f"layer_{i}", self.layer
    if kind == "mlp":
      layer = Linear(width, name=name)
      return lambda x, hop, view, rate: layer(x)
    if kind == "gcn":
      layer = GraphConvolution(width, name=name)
      return lambda x, hop, view, rate: layer(hop.edges, x, symmetric_weights(hop), hop.num_nodes)
    if kind in ("gat", "gat2"):
      heads = self.last_heads if last else self.heads
      version = 2 if kind == "gat2" else 1
      layer = GraphAttention(width, heads, average=last, version=version, loops=False, name=name)
      return lambda x, hop, view, rate: layer(hop.edges, x, hop.num_nodes, rate)
    if kind.startswith("sage"):
      aggregator = kind.removeprefix("sage_")
      layer = GraphSage(width, aggregator, normalize=not last, pool_features=self.hidden, name=name)
      project = Linear(self.hidden, name=f"input_{i}") if kind == "sage_lstm" and i == 0 else lambda x: x
      return lambda x, hop, view, rate: layer(hop.edges, project(x), hop.num_nodes)
    if kind == "gin":
      layer = GraphIsomorphism(width, self.hidden, name=name)
      return lambda x, hop, view, rate: layer(hop.edges, x, hop.num_nodes)
    if kind == "monet":
      layer = MixtureConvolution(width, kernels=self.terms, name=name)
      return lambda x, hop, view, rate: layer(hop.edges, x, _coordinates(hop), hop.num_nodes)
    if kind == "chebyshev":
      layer = ChebyshevConvolution(width, self.terms, name=name)
      return lambda x, hop, view, rate: layer(hop.edges, x)
    if kind == "dgc":
      layer = DualDiffusion(width, self.terms - 1, both=False, name=name)
      return lambda x, hop, view, rate: layer(hop.edges, x)
    if kind == "spectral":
      # A filter for each pair of many input features costs too much: they are mixed before the first.
      layer, mix = SpectralConvolution(width, name=name), lambda x: x
      if i == 0:
        mix = Linear(self.hidden, name="input")
      return lambda x, hop, view, rate: layer(*view.basis, mix(x))
    raise ValueError(f"layer is {kind!r}, expected one of {', '.join(LAYERS)}")

  def _linear(self, view: View, dropout: Rate | None) -> Float[Array, "R K"]:
    return Linear(self.num_classes, name="layer_0")(self._drop(view.x, dropout))

  def _diffusion(self, view: View, dropout: Rate | None) -> Float[Array, "R K"]:
    h = DiffusionConvolution(view.x.shape[1], name="layer_0")(view.x)
    return Linear(self.num_classes, name="layer_1")(self._drop(h, dropout))

  def _pagerank(self, view: View, dropout: Rate | None) -> Float[Array, "N K"]:
    hop = view.hops[0]
    h = nn.relu(Linear(self.hidden, name="layer_0")(self._drop(view.x, dropout)))
    self.sow("intermediates", "hidden", h)
    logits = Linear(self.num_classes, name="layer_1")(self._drop(h, dropout))
    return personalized_pagerank(hop.edges, logits, 10, self.teleport, symmetric_weights(hop))

  def _cascade(self, view: View, dropout: Rate | None) -> Float[Array, "N K"]:
    cascade = NeuralNetworkForGraphs(self.hidden, self.layers, name="layer_0")
    h = cascade(view.hops[0].edges, self._drop(view.x, dropout))
    self.sow("intermediates", "hidden", h)
    return Linear(self.num_classes, name="layer_1")(self._drop(h, dropout))

  def _initial_residuals(self, view: View, dropout: Rate | None) -> Float[Array, "R K"]:
    first = h = nn.relu(Linear(self.hidden, name="input")(self._drop(view.x, dropout)))
    hops = view.hops
    if self.layers > MOST_UNROLLED:
      h, hops = self._repeat(h, self.layers, view.hops[0], first, dropout), ()
    for i, hop in enumerate(hops):
      layer = InitialResidual(i + 1, name=f"layer_{i}")
      h = layer(hop.edges, self._drop(h, dropout), first, symmetric_weights(hop), hop.num_nodes)
      self.sow("intermediates", "hidden", h)
      h = nn.relu(h)
    return Linear(self.num_classes, name="output")(self._drop(h, dropout))


def _coordinates(hop: Hop) -> Float[Array, "E 2"]:
  root = 1 / jnp.sqrt(jnp.maximum(hop.degree, 1))
  return jnp.stack([root[hop.edges.senders], root[hop.edges.receivers]], axis=1)


def with_loops(layer: LayerName, edges: Any, num_nodes: int) -> Any:
  """`edges` as the layer wants them, once."""
  return add_self_loops(edges, num_nodes) if LAYERS[layer].loops else edges
