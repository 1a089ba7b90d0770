"""Layers and the networks made of them (notes: 模块)."""
