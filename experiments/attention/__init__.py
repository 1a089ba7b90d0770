"""Attention, positions, the Transformer and experts (notes: 注意力)."""
