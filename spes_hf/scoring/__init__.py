"""From masks to scores: how far a mask moves the model, and what adds that up by unit."""
