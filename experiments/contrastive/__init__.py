"""Contrastive learning (notes: 对比学习)."""
