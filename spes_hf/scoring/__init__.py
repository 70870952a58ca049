"""From masks to scores: how far a mask moves the model, and the sums of these impacts per unit."""
