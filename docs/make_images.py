"""Makes the pictures of README.md, docs/index.md, reading.md and contrast.md: real Whisper tiny.en, the shipped clip.

python docs/make_images.py
"""

from __future__ import annotations

from pathlib import Path

from spes_hf import AttentionConfig, SpesConfig, compare, explain
from spes_hf.demo import demo_audio, load_demo_model

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Explain the clip and draw."""
    explanation = explain(*load_demo_model(), demo_audio())
    print(explanation)
    words = explanation.words()
    country = [w for w, word in enumerate(words.tokens) if word.strip() == "country"][0]
    words.plot(country)[0].savefig(IMAGES / "country.png", dpi=110, bbox_inches="tight")
    fast = explain(*load_demo_model(), demo_audio(), config=SpesConfig.fast())
    fast.plot_overview()[0].savefig(IMAGES / "overview.png", dpi=90, bbox_inches="tight")
    attention = explain(*load_demo_model(), demo_audio(), config=AttentionConfig())
    compare(fast, attention).plot("Americans")[0].savefig(IMAGES / "comparison.png", dpi=75, bbox_inches="tight")
    contrast = explain(*load_demo_model(), demo_audio(), foil=explanation.text.replace("country", "county", 1))
    print(contrast, contrast.log_odds, contrast.sound_bits, contrast.text_bits)
    contrast.plot(0)[0].savefig(IMAGES / "county.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
