"""SeamlessM4T v2: another speech encoder, the same interface."""

from __future__ import annotations

from typing import ClassVar

from spes_hf.adapters.seamless_m4t import SeamlessM4TAdapter


class SeamlessM4Tv2Adapter(SeamlessM4TAdapter):
    """SeamlessM4T v2 has the same inputs and outputs as version 1."""

    model_classes: ClassVar[tuple[str, ...]] = ("SeamlessM4Tv2ForSpeechToText", "SeamlessM4Tv2Model")
