"""The insertion score for `evaluate.load`."""
