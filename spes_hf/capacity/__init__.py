"""What a corpus will cost before anything runs: passes, operations, seconds, bytes."""
