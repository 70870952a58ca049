"""What a corpus will cost, known before the job runs: passes, operations, seconds, bytes."""
