"""Modules for `evaluate.load`, one folder each."""
