"""Corpus jobs: rows on disk that survive a kill, work split by cost, a summary. Start with `jobs.run`."""
