"""The figures and pictures of a meta-learning run, on frozen tasks of classes or curves that training never saw."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from mlnotes.data import EvalBatches
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.progress import report_step
from mlnotes.meta.episodes import interval95, prototype_accuracy
from mlnotes.meta.sinusoid import INPUT
from mlnotes.meta.task import Task

# Tasks that the untrained start is judged on, beside --test_tasks for the trained one.
_UNTRAINED_TASKS = 200
_BLUR = 2.0  # pixels, of the prototypes on images of 28 a side; in proportion on others
_FITS, _SHEETS, _QUERIES = 3, 3, 3


class Tools(NamedTuple):
  """What a report computes with, compiled once for all seeds of a run.

  judge:   (params, hparams, arrays, i) -> {name: (B, S + 1)} for test batch i.
  predict: (params, hparams, task, inputs) -> outputs after 0, 1, .. S steps.
  floor:   (arrays, i) -> (B,) accuracy of pixel prototypes; None for regression.
  """

  judge: Callable
  predict: Callable
  floor: Callable | None
  test: EvalBatches


def pixel_floor(task: Task, ways: int) -> Float[Array, ""]:
  """Accuracy of the nearest class mean of blurred pixels: what needs no learning."""
  sigma = _BLUR * task.query["image"].shape[1] / 28
  return prototype_accuracy(task, ways, sigma)


def judge_tasks(judge: Callable, test: EvalBatches, count: int) -> Any:
  """`judge(arrays, i)` over the first `count` frozen tasks: its arrays, joined along their leading axis."""
  batches, rows = [], 0
  for i in range(test.num_batches):
    if rows >= count:
      break
    report_step("adapting to test tasks", rows, count)
    batches.append(jax.device_get(judge(test.arrays, i)))
    rows += len(jax.tree.leaves(batches[-1])[0])
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)


def write_report(tools: Tools, trained: Any, untrained: Any, hparams: Any, config: Any, directory: Path):
  """Draws adaptation.png and the fits or the episodes; returns the figures of the test tasks.

  `test_<name>_after_<n>` is the mean after n inner steps, `.._interval` the half-width of its 95 % confidence interval
  over tasks. `untrained_..` is the start's, on the first 200 of them.
  """
  judge = lambda params: lambda arrays, i: tools.judge(params, hparams, arrays, i)
  after = judge_tasks(judge(trained), tools.test, config.test_tasks)
  before = judge_tasks(judge(untrained), tools.test, min(_UNTRAINED_TASKS, config.test_tasks))
  figures = {}
  last = config.eval_inner_steps
  for name, values in after.items():
    for step in sorted({0, 1, last}):
      key = f"test_{name}_after_{step}"
      figures[key], figures[f"{key}_interval"] = interval95(values[:, step])
    figures[f"untrained_{name}_after_{last}"] = interval95(before[name][:, last])[0]
  floor = None
  if tools.floor is not None:
    floor = interval95(judge_tasks(tools.floor, tools.test, config.test_tasks))[0]
    figures["pixel_prototype_accuracy"] = floor
  draw_adaptation(before, after, floor, config, directory / "adaptation.png")
  predict = lambda params: lambda task, inputs: jax.device_get(tools.predict(params, hparams, task, inputs))
  tasks = tools.test.draw(tools.test.arrays, 0)["task"]
  if config.tasks == "sinusoid":
    draw_fits(predict(untrained), predict(trained), tasks, last, directory / "fits.png")
  else:
    draw_episodes(predict(trained), tasks, config, directory / "episodes.png")
  return figures


def draw_adaptation(
  before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], floor: float | None, config: Any, path: Path
) -> None:
  """Each figure against the inner step, before and after meta-training; bands are 95 % intervals of the mean."""
  figure, axes = new_figure(1, len(after), width=4.6 * len(after), height=3.6)
  titles = {"loss": "mean squared error" if config.tasks == "sinusoid" else "cross-entropy (nats)"}
  for axis, name in zip(axes[0], after):
    for values, label in ((before[name], "before"), (after[name], "after")):
      mean, half = np.array([interval95(column) for column in values.T]).T
      steps = np.arange(len(mean))
      (line,) = axis.plot(steps, mean, "o-", markersize=3, label=f"{label} meta-training ({len(values)} tasks)")
      axis.fill_between(steps, mean - half, mean + half, alpha=0.25, color=line.get_color(), linewidth=0)
    if name == "accuracy":
      axis.axhline(1 / config.ways, color="grey", linestyle=":", label="chance")
      axis.axhline(floor, color="grey", linestyle="--", label="nearest mean of pixels, no learning")
      axis.set_ylim(0, 1)
    axis.set_ylabel(titles.get(name, name))
    axis.set_xlabel("inner step")
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False, fontsize=8)
  what = "new sinusoids" if config.tasks == "sinusoid" else f"new classes, {config.ways}-way {config.shots}-shot"
  axes[0, 0].set_title(f"query set of {what}", fontsize=10, loc="left")
  save_figure(figure, path)


def draw_fits(untrained: Callable, trained: Callable, tasks: Task, last: int, path: Path) -> None:
  """Curves after 0, 1 and `last` steps on a few test sinusoids: before meta-training above, after it below."""
  x = np.linspace(*INPUT, 200, dtype=np.float32)[:, None]
  count = min(_FITS, len(tasks.support["x"]))
  figure, axes = new_figure(2, count, width=4.2 * count, height=6.2)
  colours = {0: "tab:grey", 1: "tab:orange", last: "tab:green"}
  for row, (predict, title) in enumerate(((untrained, "before meta-training"), (trained, "after meta-training"))):
    for column in range(count):
      task = jax.tree.map(lambda leaf, column=column: leaf[column], tasks)
      fits, axis = predict(task, x), axes[row, column]
      axis.plot(x[:, 0], true_curve(jax.device_get(task.query), x[:, 0]), color="black", linewidth=1, label="truth")
      for step, colour in colours.items():
        label = "start" if step == 0 else f"{step} step{'s' if step > 1 else ''}"
        axis.plot(x[:, 0], fits[step, :, 0], "--", color=colour, linewidth=1.6, label=label)
      axis.plot(task.support["x"][:, 0], task.support["y"][:, 0], "k^", markersize=5, label="support")
      axis.set_ylim(-5.5, 5.5)
      axis.set_title(f"test sinusoid {column + 1}, {title}", fontsize=9)
      axis.set_xlabel("x")
      axis.set_ylabel("y")
  axes[0, 0].legend(frameon=False, fontsize=8, ncols=2)
  save_figure(figure, path)


def true_curve(points: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
  """The sinusoid through `points`, which is linear in sin x and cos x."""
  basis = lambda x: np.stack([np.sin(x), np.cos(x)], axis=1)
  return basis(x) @ np.linalg.lstsq(basis(points["x"][:, 0]), points["y"][:, 0], rcond=None)[0]


def draw_episodes(predict: Callable, tasks: Task, config: Any, path: Path) -> None:
  """One row of images per episode: a support image of every class, then queries framed green if right, red if not."""
  count, ways = min(_SHEETS, len(tasks.support["label"])), min(config.ways, 10)
  columns = ways + 1 + ways * min(_QUERIES, config.eval_queries)  # with a gap
  figure, axes = new_figure(count, columns, width=0.72 * columns + 0.4, height=1.05 * count + 0.5)
  for row in range(count):
    task = jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), tasks)
    predicted = predict(task, task.query["image"])[-1].argmax(axis=-1)
    shown = [(task.support["image"][i * config.shots], f"class {i}", "black") for i in range(ways)]
    for i in range(ways):
      for j in range(min(_QUERIES, config.eval_queries)):
        at = i * config.eval_queries + j
        right = predicted[at] == task.query["label"][at]
        shown.append((task.query["image"][at], f"→ class {predicted[at]}", "tab:green" if right else "tab:red"))
    axes[row, ways].set_axis_off()
    for axis, (image, title, colour) in zip(np.delete(axes[row], ways), shown):
      axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
      axis.set_title(title, fontsize=7, color=colour, pad=2)
      axis.set_xticks([])
      axis.set_yticks([])
      for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)
    axes[row, 0].set_ylabel(f"episode {row + 1}", fontsize=8)
  figure.suptitle(
    f"support images of each class, then query images with the predicted class (green: right, red: wrong), after "
    f"{config.eval_inner_steps} inner steps",
    fontsize=9,
  )
  save_figure(figure, path)
