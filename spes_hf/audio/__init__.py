"""Audio in any form that users have it in: decoded, checked, resampled. `spes_hf.audio.load.load_audio` reads it."""
