"""Pictures of tables: what each state is worth and where the greedy policy goes, learned beside computed.

Grid worlds are drawn cell by cell; the taxi's four hundred states with a passenger as 5 x 5 maps, one per errand.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.rl.table import Table

# (right, down) of an arrow.
_ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_COLOURS = {"H": "#20304a", "C": "#20304a", "#": "#808080", "G": "#f2c230"}
_NAMES = {"H": "hole", "C": "cliff", "G": "goal", "S": "start"}
_TAXI_STOPS = {"R": (0, 0), "G": (0, 4), "Y": (4, 0), "B": (4, 3)}
# Walls of the taxi's city: between column c - 1 and column c, over these rows.
_TAXI_WALLS = ((2, (0, 1)), (1, (3, 4)), (3, (3, 4)))
# Drawn errands: (where the passenger waits, or "taxi"; the destination).
_TAXI_ERRANDS = (("R", "B"), ("Y", "G"), ("taxi", "R"), ("taxi", "B"))


def write_comparison(table: Table, q: Any, discount: float, path: Path) -> None:
  """Draws the learned action values beside those of dynamic programming, (S, A) each."""
  from mlnotes.rl.dynamic_programming import optimal_action_values

  learned, (optimal, actions) = np.asarray(q), optimal_action_values(table, discount)
  panels = {
    "learned": Panel(learned, learned.argmax(-1)),
    "dynamic programming": Panel(np.asarray(optimal), np.asarray(actions)),
  }
  write_action_values(table, panels, path)


class Panel(NamedTuple):
  """Action values (S, A), and the action that is drawn in each state (S,): of equal ones not any will do."""

  values: np.ndarray
  actions: np.ndarray


def write_action_values(table: Table, panels: dict[str, Panel], path: Path) -> None:
  """One row of pictures per entry of `panels`, by their titles, on one scale of colours."""
  if table.cells:
    figure = _draw_grids(table, panels)
  elif table.name.startswith("Taxi"):
    figure = _draw_taxi(table, panels)
  else:
    return
  save_figure(figure, path)


def _draw_grids(table: Table, panels: dict[str, Panel]) -> Any:
  height, width = len(table.cells), len(table.cells[0])
  beside = width <= 8
  rows, columns = (1, len(panels)) if beside else (len(panels), 1)
  scale = 0.85 if width <= 8 else 0.78
  figure, axes = new_figure(
    rows, columns, width=columns * (scale * width + 0.5) + 0.9, height=rows * (scale * height + 0.6) + 0.4
  )
  shown = _reachable(table)
  values = {title: np.max(panel.values, axis=-1) for title, panel in panels.items()}
  seen = np.concatenate([v[shown] for v in values.values()])
  bounds = float(seen.min()), float(seen.max())
  for axis, (title, panel) in zip(axes.flat, panels.items()):
    image = _draw_values(axis, np.where(shown, values[title], np.nan).reshape(height, width), bounds)
    axis.set_title(title)
    for s in range(height * width):
      row, column = divmod(s, width)
      letter = table.cells[row][column]
      _draw_cell(axis, row, column, letter)
      if shown[s]:
        _draw_action(axis, row, column, table.actions[panel.actions[s]], values[title][s], bounds)
  figure.colorbar(image, ax=axes, label="value of the best action", shrink=0.85, fraction=0.05)
  letters = [letter for letter in "SGHC#" if any(letter in row for row in table.cells)]
  legend = ", ".join(f"{letter} {_NAMES.get(letter, 'wall')}" for letter in letters if letter != "#")
  figure.suptitle(f"{table.name}: value and greedy action of each state ({legend})", fontsize=11)
  return figure


def _reachable(table: Table) -> np.ndarray:
  """States that an episode can be in; those that only end one, walls and the cliff are not."""
  dynamics = table.dynamics
  goes_on = (np.asarray(dynamics.probability) > 0) & ~np.asarray(dynamics.terminated)
  reached = np.asarray(dynamics.initial) > 0
  for _ in range(len(reached)):
    before = reached.sum()
    reached[np.asarray(dynamics.next_state)[reached][goes_on[reached]]] = True
    if reached.sum() == before:
      break
  return reached


def _draw_values(axis: Any, values: np.ndarray, bounds: tuple[float, float]) -> Any:
  image = axis.imshow(values, cmap="viridis", vmin=bounds[0], vmax=max(bounds[1], bounds[0] + 1e-6))
  height, width = values.shape
  axis.set_xticks(np.arange(width + 1) - 0.5, labels=[])
  axis.set_yticks(np.arange(height + 1) - 0.5, labels=[])
  axis.tick_params(length=0)
  axis.grid(color="white", linewidth=0.8)
  return image


def _draw_cell(axis: Any, row: int, column: int, letter: str) -> None:
  from matplotlib.patches import Rectangle

  if letter in _COLOURS:
    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=_COLOURS[letter], linewidth=0))
  if letter in "GHC":
    colour = "black" if letter == "G" else "white"
    axis.text(column, row, letter, ha="center", va="center", color=colour, fontsize=13, weight="bold")
  elif letter == "S":
    axis.text(column - 0.44, row - 0.42, "S", ha="left", va="top", color="#ff4d4d", fontsize=12, weight="bold")


def _draw_action(
  axis: Any, row: int, column: int, action: str, value: Any, bounds: tuple[float, float], number: bool = True
) -> None:
  """An arrow, or the name of an action that is no move, with the value below it."""
  bright = value > bounds[0] + 0.65 * (bounds[1] - bounds[0])
  colour = "black" if bright else "white"
  middle = row - 0.12 if number else row
  if action in _ARROWS:
    right, down = (0.26 * part for part in _ARROWS[action])
    ends = {"xytext": (column - right, middle - down), "xy": (column + right, middle + down)}
    axis.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0})
  else:
    axis.text(column, middle, action.replace(" ", "\n"), ha="center", va="center", color=colour, fontsize=7)
  if number:
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"
    axis.text(column, row + 0.33, text, ha="center", va="center", color=colour, fontsize=7)


def _draw_taxi(table: Table, panels: dict[str, Panel]) -> Any:
  figure, axes = new_figure(
    len(panels), len(_TAXI_ERRANDS), width=3.1 * len(_TAXI_ERRANDS) + 0.9, height=3.3 * len(panels) + 0.5
  )
  names = list(_TAXI_STOPS)
  states = lambda wait, to: (np.arange(25) * 5 + ([*names, "taxi"].index(wait))) * 4 + names.index(to)
  errands = np.concatenate([states(*errand) for errand in _TAXI_ERRANDS])
  seen = np.concatenate([np.max(panel.values, axis=-1)[errands] for panel in panels.values()])
  bounds = float(seen.min()), float(seen.max())
  for line, (title, panel) in zip(axes, panels.items()):
    for axis, (wait, to) in zip(line, _TAXI_ERRANDS):
      best = np.max(panel.values, axis=-1)[states(wait, to)]
      image = _draw_values(axis, best.reshape(5, 5), bounds)
      for i, (value, action) in enumerate(zip(best, panel.actions[states(wait, to)])):
        _draw_action(axis, *divmod(i, 5), table.actions[action], float(value), bounds)
      _draw_city(axis)
      errand = f"passenger in the taxi, to {to}" if wait == "taxi" else f"passenger waits at {wait}, to {to}"
      axis.set_title(errand, fontsize=9)
    line[0].set_ylabel(title, fontsize=12)
  figure.colorbar(image, ax=axes, label="value of the best action", shrink=0.7, fraction=0.05)
  figure.suptitle(f"{table.name}: value and greedy action wherever the taxi may be", fontsize=11)
  return figure


def _draw_city(axis: Any) -> None:
  for column, (first, last) in _TAXI_WALLS:
    axis.plot([column - 0.5] * 2, [first - 0.5, last + 0.5], color="#ff4d4d", linewidth=4, solid_capstyle="butt")
  for name, (row, column) in _TAXI_STOPS.items():
    axis.text(column - 0.44, row - 0.42, name, ha="left", va="top", color="#ff4d4d", fontsize=10, weight="bold")
