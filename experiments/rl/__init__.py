"""Reinforcement learning (notes: 强化学习)."""
