"""Qwen2-Audio: a window of 30 s, one audio embedding every 40 ms, and any instruction in a chat."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.base import GenerationOptions, Utterance
from spes_hf.adapters.frames import check_bins, check_length
from spes_hf.adapters.log_mel import log_mel_utterance
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.speech_llm import SpeechLLMAdapter
from spes_hf.audio.load import Waveform
from spes_hf.errors import AudioError


class Qwen2AudioAdapter(SpeechLLMAdapter):
    """Qwen2-Audio reads Whisper's window of 30 s; a mask over frames hides the padding from encoder and language model.

    A convolution of stride 2 and a mean over two turn four frames into one embedding. Neither model nor processor has a
    prompt for transcription, so `INSTRUCTION` is our own.
    """

    INSTRUCTION: ClassVar[str] = "Transcribe the speech into text."

    processor_classes: ClassVar[tuple[str, ...]] = ("Qwen2AudioProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("Qwen2AudioForConditionalGeneration",)
    row_settings: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        check_bins(processor.feature_extractor.feature_size, model.config.audio_config.num_mel_bins)

    @property
    def window_frames(self) -> int:
        """Frames of the window, 3000 in every released checkpoint."""
        return 2 * int(self.model.config.audio_config.max_source_positions)

    @property
    def window_s(self) -> float:
        """Length of the window in seconds, 30 in every released checkpoint."""
        extractor = self.processor.feature_extractor
        return self.window_frames * extractor.hop_length / extractor.sampling_rate

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the log-mel features of the true frames, and the padded window with its mask as the model's input.

        Raises:
            AudioError: If the audio is shorter than three frames or longer than the window.
        """
        extractor = self.processor.feature_extractor
        check_length(len(waveform.samples) // extractor.hop_length, waveform, least=3)
        if waveform.duration_s > self.window_s:
            raise AudioError(
                f"audio is {waveform.duration_s:.1f} s long, but Qwen2-Audio reads at most {self.window_s:.0f} s; pass "
                'segment="pauses" to explain(), which cuts it where speech pauses'
            )
        batch = extractor(
            waveform.samples,
            sampling_rate=waveform.sampling_rate,
            padding="max_length",
            return_tensors="pt",
            return_attention_mask=True,
        )
        inputs = {
            "input_features": batch.input_features.to(self.device, self.dtype),
            "feature_attention_mask": batch.attention_mask.to(self.device),
        }
        return log_mel_utterance(
            waveform, extractor, batch.input_features[0, :, : int(batch.attention_mask.sum())].T, inputs
        )

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the windows, (B, C, 3000): these features, then the clean padding; and their mask."""
        window = utterance.inputs["input_features"].repeat(len(features), 1, 1)
        window[:, :, : features.shape[1]] = features.transpose(1, 2)
        mask = utterance.inputs["feature_attention_mask"].expand(len(features), -1)
        return {"input_features": window, "feature_attention_mask": mask}

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return a chat in which the user sends the audio, then the instruction."""
        prompt = self.INSTRUCTION if options.prompt is None else options.prompt
        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": prompt}]
        chat = [{"role": "user", "content": content}]
        return list(self.tokenizer(self.processor.apply_chat_template(chat, add_generation_prompt=True)).input_ids)

    def audio_length(self, utterance: Utterance) -> int:
        """Return the number of embeddings: one for every four frames, counted as in the processor."""
        return ((len(utterance.times) - 1) // 2 + 1 - 2) // 2 + 1

    def embed_audio(self, **inputs: Tensor) -> Tensor:
        """Return the embeddings of true frames, (B, S, D); padding is masked, as in the model's own forward."""
        from transformers.masking_utils import create_bidirectional_mask

        windows, lengths = inputs["input_features"], inputs["feature_attention_mask"].sum(-1)
        heard, kept = self.encoder._get_feat_extract_output_lengths(lengths)
        length = int(kept[0])  # read before the encoder has work to do, for which reading would wait
        positions = torch.arange((windows.shape[-1] - 2) // 2 + 1, dtype=torch.int64, device=windows.device)
        mask = create_bidirectional_mask(
            config=self.encoder.config,
            inputs_embeds=windows.new_zeros(len(windows), len(positions), 1, dtype=self.dtype),
            attention_mask=(positions < heard[:, None]).long(),
        )
        states = self.encoder(windows, attention_mask=mask).last_hidden_state
        return self.core.multi_modal_projector(states)[:, :length]

    def last_logits(self, embeddings: Tensor, count: int) -> Tensor:
        """Return the logits of the last positions, (B, count, V); the model's own forward would compute all of them."""
        states = self.core(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return self.model.lm_head(states[:, -count:])

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the audio embeddings: position s is the mean of frames 4 s and 4 s + 2."""
        return EncoderPositions.on_frames(utterance.times, 4, 1.0, self.audio_length(utterance))
