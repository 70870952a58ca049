"""Diagnosis of errors whose cause is known, on the shipped models; bad references; and what is shuffled."""

from __future__ import annotations

import math

import pytest
import torch

from spes_hf import ConfigError, Diagnoser, Diagnosis, EnergyConfig, SpesConfig, diagnose, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.diagnosing import shuffled

FAST = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=10)


@pytest.fixture(scope="module")
def diagnoser():
    return Diagnoser(*load_tiny_model("speech2text-en"), FAST, progress=False)


def clips(*kinds):
    return [clip for clip in tiny_clips() if clip["kind"] in kinds]


def wrong(clip, words):
    """Return a reference in which a word that is heard is another of its class, its index, and the word that is heard.

    The sound says what the model writes, so it has misheard what the reference says.
    """
    said = clip["transcript"].split()
    for index, word in enumerate(said):
        if word.strip(".?,()").lower() in words and index > 0:
            other = next(w for w in words if w != word.strip(".?,()").lower())
            return " ".join([*said[:index], other, *said[index + 1 :]]), index, word
    return None


NOUNS = ("house", "car", "dog", "cat", "book", "table", "chair", "door", "tree", "flower", "apple", "bird", "picture")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "small", "big", "old", "new", "beautiful")


@pytest.fixture(scope="module")
def misheard(diagnoser):
    """Diagnoses of clips whose reference has another noun or adjective than the sound, with known times and without."""
    found = []
    for clip in clips("statement", "question", "verb-final"):
        planted = wrong(clip, NOUNS) or wrong(clip, COLOURS)
        if planted is None:
            continue
        reference, index, _ = planted
        times = [(w["start"], w["end"]) for w in clip["words"]]
        known = diagnoser(clip["path"], reference, times=times, utterance_id=clip["id"])
        mapped = diagnoser(clip["path"], reference, utterance_id=clip["id"])
        found.append((clip, index, known, mapped))
    return found


def test_what_the_sound_says_was_misheard(misheard):
    assert len(misheard) >= 8
    verdicts = {"known": [], "found": []}
    for clip, index, known, mapped in misheard:
        for name, diagnosis in (("known", known), ("found", mapped)):
            errors = [e for e in diagnosis.errors if index in e.said_words]
            assert errors, (clip["id"], diagnosis)
            verdicts[name].append(errors[0].verdict)
    assert verdicts["known"].count("misheard") >= 0.85 * len(misheard), verdicts
    assert verdicts["found"].count("misheard") >= 0.6 * len(misheard), verdicts


def test_stretches_that_are_found_lie_at_the_word(misheard):
    inside = []
    for clip, index, _, mapped in misheard:
        (error,) = [e for e in mapped.errors if index in e.said_words]
        start, end = clip["words"][index]["start"], clip["words"][index]["end"]
        middle = sum(error.stretch) / 2
        inside.append(start - 0.05 <= middle <= end + 0.05)
    assert sum(inside) >= 0.8 * len(inside)


def test_bits_add_up(misheard):
    for _, _, known, mapped in misheard:
        for error in (*known.errors, *mapped.errors):
            assert error.log_odds == pytest.approx(error.context + error.evidence, abs=1e-4)
            assert error.evidence == pytest.approx(error.written_evidence - error.said_evidence, abs=1e-4)
        for diagnosis in (known, mapped):
            for error in diagnosis.errors:
                assert float(diagnosis.explanation.log_odds[error.row]) == pytest.approx(error.log_odds, abs=1e-3)


def guessed_against_the_sound(diagnoser, **options):
    """Return for texts with a word that the sound contradicts whether the diagnosis says that it was guessed."""
    right = []
    for clip in clips("statement", "verb-final"):
        planted = wrong(clip, NOUNS) or wrong(clip, COLOURS)
        if planted is None:
            continue
        text, index, _ = planted
        times = [(w["start"], w["end"]) for w in clip["words"]]
        found = diagnoser(clip["path"], clip["transcript"], text=text, times=times, **options)
        (error,) = [e for e in found.errors if index in e.said_words]
        right.append(error.verdict == "guessed" and error.log_odds < 0)
    return right


def test_a_forced_text_that_the_sound_contradicts_is_guessed(diagnoser):
    right = guessed_against_the_sound(diagnoser)
    assert len(right) >= 6 and sum(right) >= 0.8 * len(right)


def test_a_word_that_is_not_there_is_not_heard(diagnoser):
    """Noise of a constant colour in the place of the last noun: the model guesses one, and nothing there is heard."""
    verdicts = []
    generator = torch.Generator().manual_seed(0)
    import soundfile

    for clip in clips("statement", "verb-final", "number"):
        samples, rate = soundfile.read(clip["path"], dtype="float32")
        word = clip["words"][-1]
        drowned = torch.from_numpy(samples).clone()
        start, end = int((word["start"] - 0.02) * rate), int((word["end"] + 0.02) * rate)
        end = min(end, len(drowned))
        drowned[start:end] = 0.1 * float(samples.std()) * torch.randn(end - start, generator=generator)
        times = [(w["start"], w["end"]) for w in clip["words"]]
        try:
            found = diagnoser(drowned, clip["transcript"], sampling_rate=rate, times=times)
        except ConfigError:
            continue
        errors = [e for e in found.errors if e.said_words == (len(clip["words"]) - 1,) and e.kind == "substitution"]
        verdicts += [e.verdict for e in errors]
    assert len(verdicts) >= 3
    assert sum(v in ("not heard", "guessed") for v in verdicts) >= 0.75 * len(verdicts), verdicts


def test_no_error(diagnoser):
    clip = clips("statement")[0]
    heard = explain(*load_tiny_model("speech2text-en"), clip["path"], config=FAST, progress=False).text
    found = diagnoser(clip["path"], heard.upper().strip("."))
    assert found.errors == () and found.explanation is None and found.wer == 0 and "no error" in str(found)


def test_missing_and_additional_words(diagnoser):
    clip = clips("statement")[0]
    words = clip["transcript"].split()
    missing = diagnoser(clip["path"], " ".join([*words[:2], "red", *words[2:]]))
    assert [(e.kind, e.written, e.said) for e in missing.errors] == [("deletion", "", "red")]
    assert math.isfinite(missing.errors[0].evidence) and missing.errors[0].verdict != "not known"
    more = diagnoser(clip["path"], " ".join([*words[:2], *words[3:]]))
    assert [(e.kind, e.said) for e in more.errors] == [("insertion", "")]
    assert more.errors[0].log_odds > 0 and more.wer == pytest.approx(1 / (len(words) - 1))


def test_words_that_the_model_cannot_write_stop_nothing(diagnoser):
    clip = clips("statement")[0]
    words = clip["transcript"].split()
    found = diagnoser(clip["path"], " ".join(["北京", *words[1:-1], "house."]))
    assert [e.verdict == "not known" for e in found.errors] == [True, False]
    assert "cannot write" in found.errors[0].why_not and found.errors[1].row == 0


def test_sixty_errors_in_a_row(diagnoser):
    clip = clips("statement")[0]
    heard = explain(*load_tiny_model("speech2text-en"), clip["path"], config=FAST, progress=False).text
    reference = " ".join([*["red", "house", "dog"] * 20, heard])
    found = diagnoser(clip["path"], reference)
    assert sum(len(e.said_words) for e in found.errors) == 60
    assert found.wer > 0.8 and all(e.verdict != "not known" or e.why_not for e in found.errors)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "reference is ''"),
        ("   ", "reference is"),
        (None, "reference is None"),
        ("?!", "has no words"),
        ("el perro pequeño duerme en el jardín", "no word in common"),
    ],
)
def test_bad_references_are_refused(diagnoser, reference, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        diagnoser(clips("statement")[0]["path"], reference)


WORD = {"start": 0.0, "end": 1.0}
BAD_TIMES = {
    "one": [(0.0, 1.0)],
    "backwards": [(1.0, 0.5)] * 5,
    "endless": [(0.0, float("inf"))] * 5,
    "flat": [0.0, 1.0, 2.0, 3.0, 4.0],
    "dictionaries": [WORD] * 5,
    "text": "01234",
    "samples": [(16_000.0 * i, 16_000.0 * i + 8_000) for i in range(5)],
}


@pytest.mark.parametrize("times", BAD_TIMES.values(), ids=BAD_TIMES)
def test_bad_times_are_refused(diagnoser, times):
    with pytest.raises(ConfigError, match="times"):
        diagnoser(clips("statement")[0]["path"], "one two three four five", times=times)


def test_times_may_come_from_any_iterable(diagnoser):
    clip = clips("statement")[0]
    starts = [w["start"] for w in clip["words"]]
    ends = [w["end"] for w in clip["words"]]
    reference = wrong(clip, NOUNS)[0]
    as_zip, as_list = (
        diagnoser(clip["path"], reference, times=t)
        for t in (zip(starts, ends, strict=True), [*zip(starts, ends, strict=True)])
    )
    assert as_zip.to_dict() == as_list.to_dict()


def test_a_stretch_without_frames_is_not_known(diagnoser):
    clip = clips("statement")[0]
    reference, index, _ = wrong(clip, NOUNS)
    times = [(w["start"], w["end"]) for w in clip["words"]]
    times[index] = (times[index][0], times[index][0] + 0.001)
    (error,) = diagnoser(clip["path"], reference, times=times).errors
    assert error.verdict == "not known" and "fewer than two frames" in error.why_not


@pytest.mark.parametrize("word_probability", ["chain", "length-normalised"])
def test_all_bits_are_of_one_probability(word_probability):
    clip = clips("statement")[0]
    reference = " ".join([*clip["transcript"].split()[:-1], "beautiful", "house"])
    config = FAST.changed(word_probability=word_probability)
    found = diagnose(*load_tiny_model("speech2text-en"), clip["path"], reference, config=config, progress=False)
    for error in found.errors:
        assert float(found.explanation.log_odds[error.row]) == pytest.approx(error.log_odds, abs=1e-4)
        sound = float(found.explanation.sound_bits[error.row])
        assert error.without_sound == pytest.approx(error.log_odds - sound, abs=1e-4)


def test_the_batch_size_changes_nothing():
    clip = clips("statement")[0]
    model, reference = load_tiny_model("speech2text-en"), wrong(clip, NOUNS)[0]
    one, many = (Diagnoser(*model, FAST, batch_size=b, progress=False)(clip["path"], reference) for b in (1, 8))
    for a, b in zip(one.errors, many.errors, strict=True):
        assert a.evidence == pytest.approx(b.evidence, abs=1e-3) and a.verdict == b.verdict


def test_an_impact_that_goes_without_a_foil_is_refused():
    with pytest.raises(ConfigError, match="allowed with foil"):
        diagnose(*load_tiny_model("speech2text-en"), clips("statement")[0]["path"], "a", config=SpesConfig(impact="kl"))


def test_a_method_without_a_map_of_its_own_is_refused():
    with pytest.raises(ConfigError, match="pass a SpesConfig"):
        Diagnoser(*load_tiny_model("speech2text-en"), EnergyConfig())


def test_translations_are_diagnosed_against_a_variant():
    clip = clips("statement")[0]
    model = load_tiny_model("seamless-en-de-es")
    heard = explain(*model, clip["path"], config=FAST, tgt_lang="deu", progress=False)
    word = [w.strip() for w in heard.words().tokens][-2]
    reference = heard.text.replace(word, "Hut" if word != "Hut" else "Hund")
    found = diagnose(*model, clip["path"], reference, config=FAST, tgt_lang="deu", progress=False)
    assert [e.written for e in found.errors] == [word]
    assert 0 <= found.errors[0].stretch[0] + 0.01 and found.errors[0].stretch[1] <= len(heard.waveform) / 16_000 + 0.2


def test_the_same_seed_gives_the_same(diagnoser):
    clip = clips("statement")[0]
    planted = wrong(clip, NOUNS) or wrong(clip, COLOURS)
    one, other = (diagnoser(clip["path"], planted[0], utterance_id="x") for _ in range(2))
    assert one.to_dict() == other.to_dict()
    assert Diagnosis.from_dict(one.to_dict()).to_dict() == one.to_dict()


def test_shuffling_moves_frames_of_the_stretch_alone():
    features = torch.randn(50, 4)
    times = torch.arange(50) * 0.01
    found = shuffled(features, times, (0.1, 0.3), key=3)
    inside = (times >= 0.1) & (times <= 0.3)
    assert torch.equal(found[:, ~inside], features[~inside].expand(len(found), -1, -1))
    for spectrogram in found:
        assert not torch.equal(spectrogram[inside], features[inside])
        assert torch.equal(spectrogram[inside].sort(0).values, features[inside].sort(0).values)
    assert torch.equal(found, shuffled(features, times, (0.1, 0.3), key=3))
    assert shuffled(features, times, (0.9, 1.0), key=3) is None
    short = shuffled(features, times, (0.095, 0.125), key=3, edge=0.4)  # two frames are left if no edge stays
    assert torch.equal(short[:, 13:], features[13:].expand(len(short), -1, -1)) and not torch.equal(short[0], features)
    edges = shuffled(features, times, (0.0, 0.2), key=3, edge=0.25)
    assert torch.equal(edges[:, times < 0.049], features[times < 0.049].expand(len(edges), -1, -1))


def test_an_output_without_words_is_one_error(diagnoser):
    found = diagnoser(clips("statement")[0]["path"], "the red house", text=".")
    assert [(e.kind, e.said, e.verdict) for e in found.errors] == [("deletion", "the red house", "not known")]
    assert found.wer == 1 and "wrote no word" in str(found) and found.explanation is None
