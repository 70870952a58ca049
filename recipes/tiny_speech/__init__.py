"""The miniature corpus that `train_tiny_models.py` speaks, writes and trains on; not part of the installed package."""
