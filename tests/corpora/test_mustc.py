import os
import re

import numpy as np
import pytest
import soundfile
from mustc_shape import write_corpus

from spes_hf import AudioError, ConfigError, load_mustc
from spes_hf.audio.load import load_audio
from spes_hf.corpora.mustc import SHOWN_PROBLEMS, CorpusError, read_segments
from spes_hf.demo import tiny_clips

COLUMNS = ["id", "transcript", "translation", "speaker", "duration", "audio"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tables of `datasets` go to a folder of their own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def clips():
    return tiny_clips()[:5]


@pytest.fixture
def split(tmp_path, clips):
    """Folder of the split; talk 0 has three utterances, talk 1 two."""
    return write_corpus(tmp_path / "corpus", clips)


@pytest.fixture
def root(split):
    return split.parents[2]


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


# What a row is --------------------------------------------------------------------------------------------------------


def test_rows_are_the_utterances(root, clips):
    rows = load_mustc(root, "en-de", "tst-COMMON")
    assert rows.column_names == COLUMNS and len(rows) == 5
    assert rows["id"][:] == ["ted_0_0", "ted_0_1", "ted_0_2", "ted_1_0", "ted_1_1"]
    in_order = clips[0::2] + clips[1::2]
    assert rows["transcript"][:] == [clip["transcript"] for clip in in_order]
    assert rows["translation"][:] == [clip["translation_de"] for clip in in_order]
    assert rows["speaker"][:] == ["spk.0"] * 3 + ["spk.1"] * 2
    for row, clip in zip(rows, in_order, strict=True):
        samples, rate = soundfile.read(clip["path"], dtype="float32")
        found = load_audio(row["audio"], rate)
        assert row["duration"] == pytest.approx(len(samples) / rate, abs=1e-5)
        assert len(found.samples) == len(samples)
        np.testing.assert_allclose(found.samples, samples, atol=2 / 32768)


def test_both_layouts_give_the_same_rows(tmp_path, root, clips):
    write_corpus(tmp_path / "first", clips, version=1)
    assert "rW" in (tmp_path / "first/en-de/data/tst-COMMON/txt/tst-COMMON.yaml").read_text()
    first, third = load_mustc(tmp_path / "first"), load_mustc(root)
    for a, b in zip(first, third, strict=True):
        assert {**a, "audio": None} == {**b, "audio": None}
        assert a["audio"]["offset"] == b["audio"]["offset"]


def test_root_may_be_the_folder_of_the_pair(root):
    assert load_mustc(root / "en-de")["id"][:] == load_mustc(root)["id"][:]


def test_streaming_gives_the_same_rows(root):
    from datasets import IterableDataset

    stream = load_mustc(root, streaming=True)
    assert isinstance(stream, IterableDataset) and stream.column_names == COLUMNS
    assert list(stream) == list(load_mustc(root))


def test_another_language(tmp_path, clips):
    write_corpus(tmp_path, clips, language="es")
    assert load_mustc(tmp_path, "en-es")[0]["translation"] == clips[0]["translation_es"]
    with pytest.raises(ConfigError, match="which has no folder en-de/data"):
        load_mustc(tmp_path, "en-de")


def test_sound_is_read_when_it_is_asked_for_and_only_the_stretch(root, split, monkeypatch):
    rows = load_mustc(root)
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames=-1, **kw: read.append(frames) or original(self, frames, **kw)
    )
    list(rows)
    assert not read
    load_audio(rows[1]["audio"], 16_000)
    assert read == [round(rows[1]["duration"] * 16_000)]
    (split / "wav" / "ted_1.wav").unlink()
    with pytest.raises(AudioError, match="does not exist"):
        load_audio(rows[4]["audio"], 16_000)


def test_only_a_line_feed_ends_a_line(root, split):
    texts = split / "txt" / "tst-COMMON.de"
    edit(texts, lambda b: b"\n".join([*b.split(b"\n")[:4], "eins\u2028zwei\x85drei\x0bvier\r".encode(), b""]))
    assert load_mustc(root)[4]["translation"] == "eins\u2028zwei\x85drei\x0bvier"


def test_segments_in_another_style_of_yaml(split):
    path = split / "txt" / "tst-COMMON.yaml"
    flow = read_segments(path)
    block = re.sub(r"- \{(.*)\}", lambda m: "- " + m.group(1).replace(", ", "\n  "), path.read_text())
    path.write_text(block)
    assert "- duration" in block and "\n  wav: ted_0.wav" in block
    again = read_segments(path)
    assert [(s.wav, s.offset, s.duration, s.speaker) for s in again] == [
        (s.wav, s.offset, s.duration, s.speaker) for s in flow
    ]
    assert [s.line for s in flow] == [1, 2, 3, 4, 5] and [s.line for s in again] == [1, 5, 9, 13, 17]


def test_quoted_names(split):
    path = split / "txt" / "tst-COMMON.yaml"
    path.write_text("- {duration: 1.5, offset: 0.25, speaker_id: 'spk, the first', wav: \"ted_0.wav\"}\n")
    assert read_segments(path)[0].speaker == "spk, the first" and read_segments(path)[0].wav == "ted_0.wav"


# What can be wrong ----------------------------------------------------------------------------------------------------


def shorten(path):
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[: len(samples) // 2], rate)


def set_line(ending, number, text):
    def change(folder):
        path = folder / "txt" / f"tst-COMMON.{ending}"
        lines = path.read_text(encoding="utf-8").split("\n")
        lines[number - 1] = text(lines[number - 1])
        path.write_text("\n".join(lines), encoding="utf-8")

    return change


DAMAGE = {
    "missing recording": (lambda d: (d / "wav/ted_1.wav").unlink(), ["ted_1.wav: no such recording", "yaml:4: ted_1"]),
    "no audio": (lambda d: (d / "wav/ted_1.wav").write_bytes(b"not audio"), ["ted_1.wav: cannot be read", "yaml:5:"]),
    "short recording": (lambda d: shorten(d / "wav/ted_1.wav"), [r"yaml:5: ends at .* s, but ted_1.wav is .* s long"]),
    "broken off": (
        lambda d: edit(d / "wav/ted_0.wav", lambda b: b[: len(b) // 3]),
        [r"yaml:3: ends at .* s, but ted_0.wav is .* s long"],
    ),
    "past the end": (set_line("yaml", 2, lambda t: re.sub("offset: [0-9.]+", "offset: 999", t)), ["yaml:2: ends at"]),
    "empty text": (set_line("de", 3, lambda t: "  "), [r"tst-COMMON.de:3: the text is empty"]),
    "empty transcript": (set_line("en", 1, lambda t: ""), [r"tst-COMMON.en:1: the text is empty"]),
    "no length": (set_line("yaml", 4, lambda t: re.sub("duration: [0-9.]+", "duration: 0", t)), ["yaml:4: offset"]),
    "negative": (set_line("yaml", 1, lambda t: re.sub("offset: [0-9.]+", "offset: -3", t)), ["yaml:1: offset -3.0"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported_by_file_and_line_before_anything_runs(name, root, split):
    damage, messages = DAMAGE[name]
    damage(split)
    with pytest.raises(CorpusError) as caught:
        load_mustc(root)
    for message in messages:
        assert re.search(message, str(caught.value)), str(caught.value)
    assert caught.value.problems and all(str(split) in problem for problem in caught.value.problems)
    assert 'problems="skip"' in str(caught.value)


def test_skip_goes_on_with_the_rest(root, split):
    whole = load_mustc(root)
    set_line("de", 2, lambda t: "")(split)
    (split / "wav/ted_1.wav").unlink()
    with pytest.warns(UserWarning, match="has 4 problems"):  # a recording, its two segments, a text
        rows = load_mustc(root, problems="skip")
    assert rows["id"][:] == ["ted_0_0", "ted_0_2"]  # the others keep their names
    assert rows["transcript"][:] == [whole[0]["transcript"], whole[2]["transcript"]]


def test_numbers_of_lines_must_agree_even_where_problems_are_skipped(root, split):
    edit(split / "txt/tst-COMMON.de", lambda b: b + b"one more\n")
    for problems in ("raise", "skip"):
        with pytest.raises(CorpusError, match=r"line counts differ: .*yaml: 5 lines; .*en: 5 lines; .*de: 6 lines"):
            load_mustc(root, problems=problems)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("- {duration: 1.0, offset: zero, speaker_id: a, wav: ted_0.wav}", "yaml:3: not a number:"),
        ("- {duration: 1.0, speaker_id: a, wav: ted_0.wav}", "yaml:3: missing 'offset'"),
        ("- {duration: 1.0, offset: [", r"yaml:\d: not valid YAML"),
        ("- word", "yaml:3: not a segment"),
    ],
)
def test_segments_that_cannot_be_read(root, split, line, message):
    set_line("yaml", 3, lambda t: line)(split)
    with pytest.raises(CorpusError, match=message):
        load_mustc(root)


def test_missing_files_and_other_encodings(root, split):
    edit(split / "txt/tst-COMMON.de", lambda b: "Käse\n".encode("latin-1") * 5)
    with pytest.raises(CorpusError, match="tst-COMMON.de:1: is not UTF-8 at column 2.*save it as UTF-8"):
        load_mustc(root)
    (split / "txt/tst-COMMON.de").unlink()
    with pytest.raises(CorpusError, match="tst-COMMON.de: no such file"):
        load_mustc(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le-mark", "utf-16-be-mark", "utf-32"])
def test_files_that_windows_wrote_give_the_same_rows(root, split, encoding):
    whole = load_mustc(root)
    assert any(not row["translation"].isascii() for row in whole)
    for ending in ("yaml", "en", "de"):
        text = (split / f"txt/tst-COMMON.{ending}").read_text(encoding="utf-8").replace("\n", "\r\n")
        marked = "\ufeff" + text if encoding.endswith("mark") else text
        (split / f"txt/tst-COMMON.{ending}").write_bytes(marked.encode(encoding.removesuffix("-mark")))
    assert list(load_mustc(root)) == list(whole)


def test_control_characters_do_not_shift_lines(root, split):
    whole = load_mustc(root)
    for ending, controls in (("en", "\x0b\x1c\x85\u2028"), ("de", "\x0c\u2029\r")):
        set_line(ending, 2, lambda t, c=controls: f"{t} {c}after")(split)
    rows = load_mustc(root)
    assert len(rows) == len(whole) and rows[1]["transcript"].endswith("after") and "\u2028" in rows[1]["transcript"]
    for i in (0, 2, 3, 4):
        assert rows[i] == whole[i]


def test_control_characters_in_the_segments(root, split):
    whole = load_mustc(root)
    for extra in ("note: 'a\x0bb\u2028c'", "note: [a\x0bb\x85c, \u2028]"):  # as the releases write it; other YAML
        set_line("yaml", 2, lambda t, e=extra: t.replace("}", f", {e}}}"))(split)
        assert list(load_mustc(root)) == list(whole)


def test_nul_is_left_out_with_a_warning(root, split):
    whole = load_mustc(root)
    set_line("en", 2, lambda t: t.replace(" ", "\0 ", 1))(split)
    with pytest.warns(UserWarning, match="tst-COMMON.en: removed 1 NUL characters, the first in line 2"):
        assert load_mustc(root)["transcript"][:] == whole["transcript"][:]


def test_utf16_without_a_mark_is_refused(root, split):
    edit(split / "txt/tst-COMMON.de", lambda b: b.decode().encode("utf-16-be"))
    with pytest.raises(CorpusError, match="tst-COMMON.de: is UTF-16 without a byte order mark.*iconv -f UTF-16BE"):
        load_mustc(root)


def test_many_problems_are_counted_and_some_shown(tmp_path):
    split = write_corpus(tmp_path / "many", tiny_clips()[:1] * 30, talks=1)
    (split / "txt/tst-COMMON.de").write_text("\n" * 30)
    with pytest.raises(CorpusError) as caught:
        load_mustc(tmp_path / "many")
    assert len(caught.value.problems) == 30
    assert str(caught.value).count("the text is empty") == SHOWN_PROBLEMS
    assert "and 10 more" in str(caught.value)
    with pytest.warns(UserWarning, match="30 problems"), pytest.raises(CorpusError, match="has no usable utterance"):
        load_mustc(tmp_path / "many", problems="skip")


def test_wrong_arguments(root):
    with pytest.raises(ConfigError, match="split is 'dev'; allowed: tst-COMMON"):
        load_mustc(root, "en-de", "dev")
    with pytest.raises(ConfigError, match="pair is '../x'"):
        load_mustc(root, "../x")
    with pytest.raises(ConfigError, match="which has no folder en-fr/data"):
        load_mustc(root, "en-fr")
    with pytest.raises(ConfigError, match='problems is None; allowed: "raise", "skip"'):
        load_mustc(root, problems=None)


# What is mapped over it is found again --------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content(root, split):
    first, again = load_mustc(root), load_mustc(root)
    assert first._fingerprint == again._fingerprint and first.cache_files == again.cache_files
    set_line("de", 2, lambda t: t + "!")(split)
    other_text = load_mustc(root)
    assert other_text._fingerprint != first._fingerprint and other_text[1]["translation"].endswith("!")
    os.utime(split / "wav/ted_0.wav", (1, 1))
    assert load_mustc(root)._fingerprint != other_text._fingerprint
