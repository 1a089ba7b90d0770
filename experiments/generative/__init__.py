"""Generative models (notes: 生成模型, 自编码器, 变分自编码器, 流模型, 生成对抗网络)."""
