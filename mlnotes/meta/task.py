"""What a learner that learns to learn is given."""

from typing import Any, NamedTuple


class Task(NamedTuple):
  """One task, or many with a leading axis B: `support` to adapt on, `query` to judge what came of it.

  Both are whatever the loss takes: {"x", "y"} for regression, {"image", "label"} for classification.
  """

  support: Any
  query: Any
