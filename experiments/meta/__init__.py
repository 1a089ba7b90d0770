"""Meta-learning (notes: 元学习)."""
