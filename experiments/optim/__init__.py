"""Optimization: optimizers compared, loss landscapes, batch sizes and warm-up."""
