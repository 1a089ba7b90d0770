"""Where experiments run: sweeps, clusters and benchmarks."""
