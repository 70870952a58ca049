"""Plans of capacity count speech LLMs as well, and commands load those that no class for speech knows."""

from __future__ import annotations

from transformers import AutoModelForSeq2SeqLM

from spes_hf.adapters.loading import auto_class_of
from spes_hf.capacity.operations import Operations
from spes_hf.capacity.passes import made_up_target
from spes_hf.commands.options import load_model


def test_operations_are_counted(cases):
    case = cases("qwen2_audio")
    found = Operations.count(case.adapter, case.utterance, made_up_target(5, 4))
    assert 0 < found.encoder < found.whole and found.heard > 0 and found.backward > found.decoder_backward > 0


def test_a_saved_model_is_loaded_by_its_folder(cases, tmp_path):
    case = cases("qwen2_audio")
    case.model.save_pretrained(tmp_path)
    case.processor.save_pretrained(tmp_path)
    model, processor = load_model(str(tmp_path), "cpu", "auto")
    assert type(model) is type(case.model) and type(processor) is type(case.processor)
    assert auto_class_of(model.config) is AutoModelForSeq2SeqLM
