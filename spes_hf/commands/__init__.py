"""The commands of ``spes-hf``: each module adds its options to the parser, and runs what they ask for."""
