"""Names that help texts show before anything heavy is imported."""

from __future__ import annotations

# Models that the package ships.
TINY_MODELS = ("speech2text-en", "seamless-en-de-es")

# Methods by their former names, under which configs and explanations may be stored.
FORMER_METHODS = {"gradient": "captum"}

# Settings of `SpesConfig` by name; `spes_hf.methods.presets.preset` makes them.
PRESETS = ("fast", "default", "paper")
