"""Arguments out of range, said when a rule or a schedule is built. What is traced or an array is let through."""

from typing import Any


def require_positive(name: str, value: Any) -> None:
  if isinstance(value, (int, float)) and not value > 0:
    raise ValueError(f"{name}={value} is out of range: expected a number above 0.")


def require_non_negative(name: str, value: Any) -> None:
  if isinstance(value, (int, float)) and not value >= 0:
    raise ValueError(f"{name}={value} is out of range: expected 0 or more.")


def require_at_least_one(name: str, value: Any) -> None:
  if isinstance(value, (int, float)) and not value >= 1:
    raise ValueError(f"{name}={value} is out of range: expected 1 or more.")


def require_share(name: str, value: Any) -> None:
  if isinstance(value, (int, float)) and not 0 < value <= 1:
    raise ValueError(f"{name}={value} is out of range: expected a number in (0, 1].")
