"""Speed beside other programs, one module per chapter: `python -m launch.benchmarks.rl`."""
