"""Meta-learning: initialisations, learning rates and optimizers that are learned from many small tasks."""
