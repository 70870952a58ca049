"""Corpus jobs: rows on disk that survive being killed, work split by cost, a summary. Start with `jobs.run`."""
