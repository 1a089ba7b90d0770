"""A picture of what each head looks at in one sequence."""

from pathlib import Path

import numpy as np

from experiments.attention._tokens import Model, sample_tokens
from mlnotes.attention import Task
from mlnotes.attention.tasks import NOT_ASKED


def draw_weights(model: Model, task: Task, title: str, path: Path) -> None:
  """A map for each layer (rows) and head (columns), what is asked and answered beside the queries."""
  from mlnotes.engine.plot import new_figure, save_figure

  tokens, targets = sample_tokens(task, 1)
  layers = [np.asarray(weights[0]) for weights in model.weights(tokens)]
  answers = np.asarray(model(tokens)[0]).argmax(-1)
  said = [str(token) for token in np.asarray(tokens[0])]
  asked = [
    f"{token}" if target == NOT_ASKED else f"{token}: {answer}{'' if answer == target else f' (is {target})'}"
    for token, target, answer in zip(said, np.asarray(targets[0]), answers)
  ]
  heads = layers[0].shape[0]
  figure, axes = new_figure(len(layers), heads, width=3.6 * heads + 1, height=3.9 * len(layers))
  for row, weights in enumerate(layers):
    for head in range(heads):
      axis = axes[row, head]
      image = axis.imshow(weights[head], cmap="magma", vmin=0, vmax=1)
      axis.set_title(f"layer {row + 1}, head {head + 1}", fontsize=9)
      axis.set_xticks(range(len(said)), said, fontsize=6, rotation=90)
      axis.set_yticks(range(len(asked)), asked, fontsize=6)
    axes[row, 0].set_ylabel("query: answer where one is asked", fontsize=8)
  for head in range(heads):
    axes[-1, head].set_xlabel("key", fontsize=8)
  figure.colorbar(image, ax=axes, fraction=0.015, label="weight")
  figure.suptitle(title)
  save_figure(figure, path)
