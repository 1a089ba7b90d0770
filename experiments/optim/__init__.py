"""Optimization (notes: 优化): optimizers compared, loss landscapes, batch sizes and warm-up."""
