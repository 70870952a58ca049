import pytest
import torch

from spes_hf import ConfigError, Size
from spes_hf.metrics import THRESHOLDS, summarize


def test_thresholds_are_the_papers():
    assert THRESHOLDS == pytest.approx([0.05 * i for i in range(21)]) and THRESHOLDS[7] == 0.35


def with_maps(explanation, audio, token):
    explanation.__dict__["audio_saliency"] = audio
    explanation.__dict__["token_saliency"] = token
    return explanation


@pytest.fixture
def by_hand(changed):
    """An explanation whose maps are: the spectrogram's a quarter 1, a quarter 0.35, half 0; the tokens' all 0.5."""
    found = changed()
    audio = torch.zeros_like(found.audio_saliency)
    audio[:, :30], audio[:, 30:60] = 1.0, 0.35
    return with_maps(found, audio, torch.where(found.raw_token_scores.isnan(), torch.nan, 0.5))


def test_curve_by_hand(by_hand):
    row = Size()(by_hand)["size"]
    assert row["audio"] == [100.0] + [50.0] * 7 + [25.0] * 13  # at 0.35 itself still in
    assert row["token"] == [100.0] * 11 + [0.0] * 10


def test_area_by_hand(by_hand):
    scores = summarize([Size()(by_hand)])
    # Trapezoids of width 0.05: (100 + 50) / 2, 6 × 50, (50 + 25) / 2, 12 × 25; and 10 × 100, (100 + 0) / 2
    assert scores["size_audio"].value == pytest.approx(0.05 * (75 + 300 + 37.5 + 300))
    assert scores["size_token"].value == pytest.approx(0.05 * (1000 + 50))
    assert not scores["size_audio"].higher_is_better


def test_mean_over_utterances_not_over_features(by_hand, explanation):
    first, second = Size()(by_hand), Size()(explanation)
    both = summarize([first, second])["size_audio"]
    each = [summarize([row])["size_audio"].value for row in (first, second)]
    assert both.value == pytest.approx(sum(each) / 2)
    assert both.num_utterances == 2 and min(each) <= both.interval.low <= both.value <= both.interval.high <= max(each)


def test_constant_maps_have_the_whole_size_at_0_only(changed):
    flat = changed()
    with_maps(flat, torch.zeros_like(flat.audio_saliency), torch.zeros_like(flat.token_saliency))
    assert summarize([Size()(flat)])["size_audio"].value == pytest.approx(0.05 * 50)


def test_an_explanation_over_words_has_the_size_of_its_tokens(explanation):
    assert Size()(explanation.words())["size"] == Size()(explanation)["size"]


def test_nan_is_refused(changed):
    broken = changed()
    with_maps(broken, broken.audio_saliency.clone(), broken.token_saliency)
    broken.audio_saliency[0, 3, 4] = torch.nan
    with pytest.raises(ConfigError, match="NaN"):
        Size()(broken)
    broken = changed()
    with_maps(broken, broken.audio_saliency, torch.full_like(broken.token_saliency, torch.nan))
    with pytest.raises(ConfigError, match="NaN"):
        Size()(broken)


def test_maps_of_another_shape_are_refused(changed):
    broken = changed()
    with_maps(broken, broken.audio_saliency[:, :-1], broken.token_saliency)
    with pytest.raises(ConfigError, match=r"audio_saliency has shape \(6, 119, 80\)"):
        Size()(broken)


def test_rows(explanation, tmp_path):
    path = str(explanation.save(tmp_path / "saved"))
    row = {"id": 7, "explanation": path}
    found = Size()(row)
    assert row.keys() == {"id", "explanation"}
    assert found["id"] == 7 and found["explanation"] == path
    assert found["size"] == Size()(explanation)["size"]
    assert Size()({"id": 8, "error": "AudioError: empty"}) == {"id": 8, "error": "AudioError: empty", "size": None}
    with pytest.raises(ConfigError, match="row has no 'explanation' .it has id"):
        Size()({"id": 9})
    with pytest.raises(ConfigError, match="explanation is a int"):
        Size()({"explanation": 9})
