"""The commands of ``spes-hf``: each module adds its options to the parser and runs the command."""
