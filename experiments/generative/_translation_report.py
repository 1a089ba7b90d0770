"""What translations are worth: judged beside real images of the target, and by what becomes of their class."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generative._chunks import in_chunks
from experiments.generative._judging import MIN_SAMPLES, judge_samples, make_reference, one_of_each
from mlnotes.data import fixed_subset
from mlnotes.diffusion.process import to_signed
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn
from mlnotes.generative import class_agreement, from_unit

_COLUMNS, _JUDGED, _CHUNK = 10, 1000, 250


def write_report(translators: dict[str, Any], domains: Any, config: Any, directory: Path) -> dict[str, float]:
  """Writes translations.png; returns figures of translated test images.

  `label_kept`: share whose class is still told by the judge of the target, `label_kept_untranslated`: of the images as
  they were, the floor; `judge_accuracy`, of real targets, is the ceiling; `collapsed`: 1 where all become about one
  image. Of pairs also `l1_untranslated`, the error of leaving the image as it is.
  """
  count = config.quality_samples or max(min(len(domains.test), _JUDGED), MIN_SAMPLES)
  reference = make_reference(domains.target, count)
  count = reference.num_samples
  rows = domains.test.read(np.resize(fixed_subset(len(domains.test), count), count))
  x = np.asarray(to_signed(jnp.asarray(rows["source"]), domains.source_levels))
  apply = lambda name, x: in_chunks(jax.jit(lambda x: translators[name](x)), x, size=_CHUNK)
  made = apply("forward", x)
  levels = domains.target.levels
  images, untouched = (np.asarray(from_unit((image + 1) / 2, levels)) for image in (made, x))
  figures = judge_samples(reference, images, rows["label"])
  figures["label_kept"] = figures.pop("class_agreement")
  figures["label_kept_untranslated"] = class_agreement(reference.judge.predict(untouched), rows["label"])
  figures[f"judge_distance_{count}_untranslated"] = reference.distance(reference.judge.features(untouched))
  target = np.asarray(to_signed(jnp.asarray(rows["target"]), levels))
  if config.task == "paired":
    figures["l1_untranslated"] = float(np.mean(np.abs(x - target)) / 2)
    shown = {"seen": x, "made": made, "real": target}
  else:
    shown = {"source": x, "translated": made, "back": apply("backward", made)}
  collapsed = np.mean(np.std(made, axis=0)) < 0.1 * np.mean(np.std(target, axis=0))
  figures["collapsed"] = float(collapsed)
  if collapsed:
    warn("collapsed: every image is translated into about the same one.")
  report_step("pictures")
  _draw(shown, rows["label"], directory / "translations.png")
  return figures


def _draw(shown: dict[str, np.ndarray], label: np.ndarray, path: Path) -> None:
  """Two groups of rows, one for each of `shown`; a column for each class where there are enough."""
  index = one_of_each(label, 2 * _COLUMNS)
  groups = [index[i : i + _COLUMNS] for i in range(0, len(index), _COLUMNS)]
  groups = [group for group in groups if len(group) == len(groups[0])]
  images = np.concatenate([(value[group] + 1) / 2 for group in groups for value in shown.values()])
  columns = len(groups[0])
  figure, axes = new_figure(width=6.5, height=sheet_height(5.2, images, columns) + 0.4)
  show_images(axes[0, 0], images, columns=columns)
  height = images.shape[1] + 1
  names = list(shown) * len(groups)
  axes[0, 0].set_yticks([height * i + height / 2 - 1 for i in range(len(names))], names)
  axes[0, 0].tick_params(length=0, labelsize=8)
  save_figure(figure, path)
