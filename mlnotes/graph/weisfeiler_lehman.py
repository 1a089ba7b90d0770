"""What graphs have in common by the refinement of colours (notes: Weisfeiler-Lehman 图同构测试). On the host."""

import numpy as np
from jaxtyping import Int


def refine_colors(
  color: Int[np.ndarray, " N"], senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], rounds: int
) -> list[Int[np.ndarray, " N"]]:
  """Colours of nodes before and after each round: equal ones where own colour and multiset of neighbours' were equal.

  Weisfeiler & Lehman 1968. Numbers are of all nodes that are given, so graphs that are to be compared go in together.
  """
  _, color = np.unique(color, return_inverse=True)
  found = [color]
  for _ in range(rounds):
    order = np.lexsort((color[senders], receivers))
    starts = np.searchsorted(receivers[order], np.arange(len(color) + 1))
    near = color[senders][order]
    words = [(own, near[a:b].tobytes()) for own, a, b in zip(color, starts, starts[1:])]
    numbers: dict[tuple[int, bytes], int] = {}
    color = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    found.append(color)
  return found


def count_colors(colors: list[Int[np.ndarray, " N"]], graph: Int[np.ndarray, " N"]) -> Int[np.ndarray, "G C"]:
  """How many nodes of each graph have each colour, of all rounds side by side: features of the subtree kernel.

  Shervashidze et al. 2011; the kernel of two graphs is the product of their rows.
  """
  size = int(graph.max()) + 1
  parts = []
  for color in colors:
    counts = np.zeros((size, int(color.max()) + 1), np.int64)
    np.add.at(counts, (graph, color), 1)
    parts.append(counts)
  return np.concatenate(parts, axis=1)
