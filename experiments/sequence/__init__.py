"""Recurrent networks, sequence to sequence, CTC, pointers and memories (notes: 循环神经网络, 序列模型)."""
