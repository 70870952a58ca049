"""The user's model while it runs: unwrapped, locked, restored afterwards; its memory, threads and identity."""
