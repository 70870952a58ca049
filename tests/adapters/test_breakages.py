"""The suite is of use: adapters that are wrong in one thing each fail it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import test_attention
import test_batches
import test_contract
import test_contract_llm
import test_contract_llm_output
import test_fast_conformers
import torch
from tiny_fast_conformers import FAST_CONFORMERS
from tiny_llm import LLMS

from spes_hf.adapters import Adapter, SpeechLLMAdapter, Target
from spes_hf.adapters.frames import mel_frequencies
from spes_hf.adapters.hooks import forward_hook
from spes_hf.adapters.positions import EncoderPositions


class InputMaskDropped(Adapter):
    def model_inputs(self, utterance, features):
        return {"input_features": super().model_inputs(utterance, features)["input_features"]}


class EncoderMaskOfOnes(Adapter):
    def decoder_inputs(self, inputs, states, batch):
        made = super().decoder_inputs(inputs, states, batch)
        made["encoder_outputs"]["attention_mask"] = torch.ones_like(made["encoder_outputs"]["attention_mask"])
        return made


class PromptWithoutItsEnd(Adapter):
    def prompt_ids(self, options):
        return super().prompt_ids(options)[:-1]


class PromptOfEnglish(Adapter):
    def prompt_ids(self, options):
        return super().prompt_ids(dataclasses.replace(options, **{name: "en" for name in self.options}))


class PrefixCountedOneShort(Adapter):
    def split_output(self, sequence, prefix_length):
        return super().split_output(sequence, prefix_length - 1)


class LogitsOneLate(Adapter):
    def logits(self, *args, **kwargs):
        return super().logits(*args, **kwargs).roll(1, dims=1)


class PaddingTakenForSound(Adapter):
    def encode(self, waveform):
        utterance = super().encode(waveform)
        features = utterance.inputs["input_features"][0].float().cpu()
        return dataclasses.replace(utterance, features=features, times=0.01 * torch.arange(len(features)))


class PaddingRepeatsTheLastFrame(Adapter):
    def model_inputs(self, utterance, features):
        made = super().model_inputs(utterance, features)
        made["input_features"][:, features.shape[1] :] = features[:, -1:]
        return made


class FeaturesNormalisedWithPadding(Adapter):
    def encode(self, waveform):
        utterance = super().encode(waveform)
        features = utterance.features
        share = len(features) / (len(features) + 100)
        return dataclasses.replace(utterance, features=features * share)


class InputsWrittenTo(Adapter):
    def model_inputs(self, utterance, features):
        made = super().model_inputs(utterance, features)
        utterance.inputs["input_features"].copy_(made["input_features"][:1])
        return made


class FeaturesDetached(Adapter):
    def model_inputs(self, utterance, features):
        return super().model_inputs(utterance, features.detach() + 0 * features)


class TokensReplacedByPadding(Adapter):
    @contextmanager
    def perturbed_tokens(self, ids, keep):
        with super().perturbed_tokens(ids, None):
            padding = torch.full_like(ids, self.tokenizer.unk_token_id)
            yield {"decoder_input_ids": ids if keep is None else torch.where(keep.bool(), ids, padding)}


class EveryEmbeddingPerturbed(Adapter):
    """The hook hits the start token as well, whatever its bit says."""

    @contextmanager
    def perturbed_tokens(self, ids, keep):
        if keep is None:
            yield {"decoder_input_ids": ids}
            return
        keep = torch.cat([keep[:, :1] * 0, keep[:, 1:]], 1)
        with forward_hook(self.token_embedding, lambda output: output * keep.unsqueeze(-1).to(output)):
            yield {"decoder_input_ids": ids}


class CacheOfValuesTwice(Adapter):
    def cross_attention(self, utterance, target, states):
        return tuple((values, values) for _, values in super().cross_attention(utterance, target, states))


class TimesOfKaldi(Adapter):
    def encode(self, waveform):
        utterance = super().encode(waveform)
        return dataclasses.replace(utterance, times=utterance.times + 0.0125)


class FrequenciesOfKaldi(Adapter):
    def encode(self, waveform):
        utterance = super().encode(waveform)
        return dataclasses.replace(utterance, frequencies=mel_frequencies(128, 20.0, 8000.0, "kaldi"))


class PositionsOfFourFrames(Adapter):
    def encoder_positions(self, utterance):
        return EncoderPositions.on_frames(utterance.times, 4, 0.0, (len(utterance.times) - 1) // 4 + 1)


class PositionsLate(Adapter):
    def encoder_positions(self, utterance):
        return EncoderPositions.on_frames(utterance.times, 8, 3.5, self.attended(utterance))


class AttendsToPadding(Adapter):
    def attended(self, utterance):
        return super().attended(utterance) + 1


class PromptTakenForText(Adapter):
    def is_special(self, ids):
        return [token in self.tokenizer.all_special_ids for token in ids.tolist()]


class EndOfSequenceDropped(Adapter):
    def generate_rows(self, utterance, inputs, options):
        targets = super().generate_rows(utterance, inputs, options)
        kept = [target.token_ids[target.token_ids != self.eos_token_id] for target in targets]
        return [Target(t.prefix_ids, ids, t.complete) for t, ids in zip(targets, kept, strict=True)]


class SettingsIgnored(Adapter):
    def generation_settings(self, options):
        kept = {"no_repeat_ngram_size", "forced_eos_token_id"}
        return {
            "max_new_tokens": 8,
            **{n: v for n, v in super().generation_settings(options).items() if n in kept},
            "return_dict_in_generate": True,
        }


BROKEN: list[tuple[type[Adapter], Callable[..., Any], dict[str, Any]]] = [
    (InputMaskDropped, test_contract.test_features_go_in_bit_for_bit, {}),
    (
        EncoderMaskOfOnes,
        test_contract.test_clean_pass_is_the_model_s_own_whatever_padding_there_is,
        {"samples": 11_600},
    ),
    (PromptWithoutItsEnd, test_contract.test_generates_what_the_model_generates, {}),
    (PromptOfEnglish, test_contract.test_generates_what_the_model_generates, {}),
    (PrefixCountedOneShort, test_contract.test_prefix_does_not_depend_on_what_is_generated, {}),
    (LogitsOneLate, test_contract.test_clean_pass_is_the_model_s_own, {}),
    (PaddingTakenForSound, test_contract.test_axes, {}),
    (PaddingRepeatsTheLastFrame, test_contract.test_features_go_in_bit_for_bit, {}),
    (FeaturesNormalisedWithPadding, test_contract.test_features_go_in_bit_for_bit, {}),
    (InputsWrittenTo, test_contract.test_inputs_of_the_utterance_are_never_written_to, {}),
    (FeaturesDetached, test_contract.test_gradient_reaches_the_features, {}),
    (TokensReplacedByPadding, test_contract.test_perturbed_tokens_equal_the_literal_embedding, {}),
    (EveryEmbeddingPerturbed, test_contract.test_masks_of_ones_change_nothing, {}),
    (CacheOfValuesTwice, test_contract.test_keys_and_values_of_the_encoder_serve_every_mask, {}),
    (TimesOfKaldi, test_contract.test_axes, {}),
    (FrequenciesOfKaldi, test_fast_conformers.test_frequencies_are_those_of_the_filters, {}),
    (PositionsOfFourFrames, test_attention.test_a_position_lies_at_the_centre_of_the_frames_that_it_is_made_of, {}),
    (PositionsLate, test_attention.test_a_position_lies_at_the_centre_of_the_frames_that_it_is_made_of, {}),
    (AttendsToPadding, test_attention.test_positions_behind_the_mask_have_no_weight, {}),
    (PromptTakenForText, test_contract.test_text_is_written_as_the_model_writes_it, {}),
    (EndOfSequenceDropped, test_contract.test_end_of_sequence_is_the_last_token_and_explained, {}),
    (SettingsIgnored, test_contract.test_settings_of_generation_are_respected, {}),
]


class PlaceOfTheAudioLost(SpeechLLMAdapter):
    def start(self, options):
        return dataclasses.replace(super().start(options), audio_at=0)


class WholePromptTakenForTheInstruction(SpeechLLMAdapter):
    def start(self, options):
        found = super().start(options)
        return dataclasses.replace(found, instruction=tuple(range(len(found.prefix_ids))))


class PlaceholderTooMany(SpeechLLMAdapter):
    def audio_length(self, utterance):
        return super().audio_length(utterance) + 1


class EmbeddingsOneLate(SpeechLLMAdapter):
    def embed_audio(self, **inputs):
        return super().embed_audio(**inputs).roll(1, dims=1)


class MasksOverTokensHideTheAudio(SpeechLLMAdapter):
    def logits(self, utterance, target, features=None, token_keep=None, states=None, cross=None):
        if token_keep is not None and states is not None:
            states = states * token_keep.any().to(states)
        elif token_keep is not None:
            states = self.encoder_states(utterance.inputs) * token_keep.any().to(self.dtype)
        return super().logits(utterance, target, features, token_keep, states)


class CacheLeft(SpeechLLMAdapter):
    def last_logits(self, embeddings, count):
        return self.model(inputs_embeds=embeddings, use_cache=True).logits[:, -count:]


class StatesNotRecorded(SpeechLLMAdapter):
    @contextmanager
    def _recorded_states(self, utterance, rows):
        yield []


class RowsInAnotherOrder(SpeechLLMAdapter):
    def generate_rows(self, utterance, inputs, options):
        return super().generate_rows(utterance, inputs, options)[::-1]


class BeamsTakenForRows(SpeechLLMAdapter):
    @contextmanager
    def _recorded_states(self, utterance, rows):
        beams = []
        with super()._recorded_states(utterance, 3 * rows) as recorded:
            yield beams
        beams.extend(states[:rows] for states in recorded)


class AttentionToTheNextPlace(SpeechLLMAdapter):
    def attention_weights(self, utterance, target, states=None):
        return super().attention_weights(utterance, target, states).roll(1, dims=-1)


class OutputStartsWithASpace(SpeechLLMAdapter):
    def output_ids(self, text):
        return self.text_ids(text)


_SEQUENCE = test_contract_llm.test_the_sequence_is_the_processor_s, {"prompt": None}
BROKEN_LLMS: list[tuple[type[Adapter], Callable[..., Any], dict[str, Any]]] = [
    (PromptWithoutItsEnd, *_SEQUENCE),
    (PlaceOfTheAudioLost, *_SEQUENCE),
    (WholePromptTakenForTheInstruction, *_SEQUENCE),
    (PlaceholderTooMany, *_SEQUENCE),
    (EmbeddingsOneLate, test_contract_llm.test_clean_pass_is_the_model_s_own, {}),
    (LogitsOneLate, test_contract_llm.test_clean_pass_is_the_model_s_own, {}),
    (MasksOverTokensHideTheAudio, test_contract_llm.test_no_mask_over_tokens_hides_the_audio, {}),
    (CacheLeft, test_contract_llm.test_no_cache_is_left_in_the_pass, {}),
    (InputsWrittenTo, test_contract_llm.test_inputs_of_the_utterance_are_never_written_to, {}),
    (FeaturesDetached, test_contract_llm.test_gradient_reaches_every_true_frame, {}),
    (TimesOfKaldi, test_contract_llm.test_axes, {}),
    (AttentionToTheNextPlace, test_contract_llm.test_attention_is_that_of_the_language_model, {}),
    (
        StatesNotRecorded,
        test_contract_llm_output.test_generating_gives_the_audio_embeddings_at_no_extra_pass,
        {"beams": 1},
    ),
    (RowsInAnotherOrder, test_batches.test_every_row_is_written_as_if_it_were_alone, {"beams": 1}),
    (BeamsTakenForRows, test_batches.test_every_row_is_written_as_if_it_were_alone, {"beams": 3}),
    (OutputStartsWithASpace, test_contract_llm_output.test_text_is_written_as_the_model_writes_it, {}),
    (EndOfSequenceDropped, test_contract_llm_output.test_end_of_sequence_is_the_last_token_and_explained, {}),
    (
        SettingsIgnored,
        test_contract_llm_output.test_generates_what_the_model_generates,
        {"more": {"num_beams": 3, "max_new_tokens": 5}, "prompt": None},
    ),
]


def with_adapter(case, broken):
    """Return the case with its adapter broken, and what that makes of the clip."""
    adapter = type(broken.__name__, (broken, type(case.adapter)), {})(case.model, case.processor)
    utterance = adapter.encode(case.utterance.waveform)
    return dataclasses.replace(
        case, adapter=adapter, utterance=utterance, target=adapter.generate(utterance, case.options)
    )


@pytest.mark.parametrize("name", FAST_CONFORMERS)
@pytest.mark.parametrize(("broken", "test", "arguments"), BROKEN, ids=[broken.__name__ for broken, _, _ in BROKEN])
def test_a_broken_adapter_fails(cases, clip, broken, test, arguments, name):
    parameters = inspect.signature(test).parameters
    case = with_adapter(cases(name, torch.float64 if "exact" in parameters else torch.float32), broken)
    known = {"case": case, "exact": case, "fast": case, "cases": lambda _: case, "clip": clip, "name": name}
    with pytest.raises(AssertionError):
        test(**{parameter: {**known, **arguments}[parameter] for parameter in parameters})


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.parametrize(
    ("broken", "test", "arguments"), BROKEN_LLMS, ids=[broken.__name__ for broken, _, _ in BROKEN_LLMS]
)
def test_a_broken_adapter_of_a_speech_llm_fails(cases, broken, test, arguments, name):
    parameters = inspect.signature(test).parameters
    case = cases(name, torch.float64 if "exact" in parameters else torch.float32)
    adapter = type(broken.__name__, (broken, type(case.adapter)), {})(case.model, case.processor)
    case = dataclasses.replace(case, adapter=adapter, utterance=adapter.encode(case.utterance.waveform))
    known = {"case": case, "exact": case}
    with pytest.raises(AssertionError):
        test(**{parameter: {**known, **arguments}[parameter] for parameter in parameters})
