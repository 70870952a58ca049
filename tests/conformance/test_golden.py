"""Numbers kept from before: `SpesConfig.paper` draws the same maps today, and what was saved then can be read."""

import math
from pathlib import Path

import pytest
import torch
from make_golden import CASES, FILE, explained, numbers
from safetensors.torch import load_file

from spes_hf import Explanation


@pytest.mark.numerics
@pytest.mark.parametrize("case", list(CASES))
def test_the_papers_setting_draws_the_same_maps(case):
    """The file was made by make_golden.py with the code as it was before there was a gradient estimator."""
    golden = {
        name.removeprefix(f"{case}."): value for name, value in load_file(FILE).items() if name.startswith(f"{case}.")
    }
    explanation = explained(case)
    found = numbers(explanation)
    assert found.keys() == golden.keys() and len([name for name in golden if name.startswith("scores.")]) == 3
    for name, expected in golden.items():
        if expected.is_floating_point():
            torch.testing.assert_close(found[name], expected, rtol=2e-5, atol=1e-5, equal_nan=True, msg=name)
        else:
            assert torch.equal(found[name], expected), name
    assert explanation.sentence_map is None
    assert explanation.provenance["cost"]["forward_passes"] == 3 + 60 + 40
    assert explanation.provenance["cost"]["backward_passes"] == 0


def test_a_folder_saved_before_there_were_sentence_maps_is_read():
    found = Explanation.load(Path(__file__).parent / "explanation_v1")
    assert found.text == "Ein Café 0"
    assert found.sentence_map is None
    torch.testing.assert_close(found.sentence_saliency, found.audio_saliency.mean(0))
    assert found.sound_bits.isnan().all() and math.isnan(found.bits_per_token)  # it was not measured then
    assert found.reliability.sentence == pytest.approx(0.123456789012345)
