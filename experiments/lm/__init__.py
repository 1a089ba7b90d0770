"""Language models: pretraining, and what is written by them (notes: 语言模型, 预训练)."""
