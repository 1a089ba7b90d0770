"""Diffusion models (notes: 扩散模型)."""
