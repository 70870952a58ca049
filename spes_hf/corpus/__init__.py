"""Corpus jobs: rows on disk that survive being killed, work split by cost, a summary. `spes_hf.distributed` uses it."""
