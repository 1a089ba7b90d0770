"""Lists the experiments."""

from experiments import catalogue


def main() -> None:
  rows = list(catalogue())
  width = max(len(name) for name, _ in rows)
  for name, summary in rows:
    print(f"python -m experiments.{name:<{width}}  {summary}")
  print("\nThe flags of one, with defaults, choices and help: python -m experiments.<chapter>.<method> --helpshort")


if __name__ == "__main__":
  main()
