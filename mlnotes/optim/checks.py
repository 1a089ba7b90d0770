"""Arguments out of range, said when a rule or a schedule is built. What is traced or an array is let through."""

from typing import Any


def require_positive(name: str, value: Any) -> None:
  if isinstance(value, (int, float)) and not value > 0:
    raise ValueError(f"{name}={value} is out of range: expected a number above 0.")


def require_non_negative(name: str, value: Any) -> None:
  if isinstance(value, (int, float)) and not value >= 0:
    raise ValueError(f"{name}={value} is out of range: expected 0 or more.")
