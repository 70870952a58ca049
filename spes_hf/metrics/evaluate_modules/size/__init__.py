"""The size score for `evaluate.load`."""
