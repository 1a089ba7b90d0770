"""What runs an experiment: its contract, flags, loop, records, checkpoints and devices."""
