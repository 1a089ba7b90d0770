"""Reinforcement learning: from tables to continuous control (notes: 强化学习)."""
