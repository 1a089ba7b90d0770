"""Graph neural networks (notes: 图神经网络, 图嵌入, 图生成)."""
