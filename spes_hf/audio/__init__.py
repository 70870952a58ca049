"""Audio in whatever form people hold it: decoded, checked, resampled. `spes_hf.audio.load.load_audio` reads it."""
