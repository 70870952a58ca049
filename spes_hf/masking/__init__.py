"""What is perturbed and how: patches, tokens, seeded masks."""
