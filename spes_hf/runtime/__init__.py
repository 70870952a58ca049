"""The user's model while it runs: unwrapped, locked, left as it was; its memory, its threads, its identity."""
