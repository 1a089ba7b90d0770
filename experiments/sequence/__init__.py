"""Recurrent networks and sequence models (notes: 循环神经网络, 序列模型)."""
