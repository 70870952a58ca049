"""Corpora: MuST-C, and the map-style transforms for any other."""
