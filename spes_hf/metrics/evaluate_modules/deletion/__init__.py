"""The deletion score for `evaluate.load`."""
