"""Audio, data sets and map-style transforms."""
