import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.text import byte_level_piece, join_pieces, sentencepiece_piece, word_groups


def words(pieces, special=()):
    flags = [k in special for k in range(len(pieces))]
    return [join_pieces([pieces[k] for k in group]) for group in word_groups(pieces, flags)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([" the", " cat"], [" the", " cat"], id="words"),
        pytest.param(["The", " cat"], ["The", " cat"], id="no space at the start"),
        pytest.param([" un", "believ", "able", " story"], [" unbelievable", " story"], id="several tokens"),
        pytest.param([" Hello", ",", " world", "!"], [" Hello", ",", " world", "!"], id="punctuation"),
        pytest.param([" Really", "?!"], [" Really", "?!"], id="two marks in a token"),
        pytest.param([" wait", "..."], [" wait", "..."], id="ellipsis of dots"),
        pytest.param([" wait", "...", " what"], [" wait", "...", " what"], id="ellipsis within"),
        pytest.param([" wait", "…"], [" wait", "…"], id="ellipsis"),
        pytest.param([" wait", ".", ".", "."], [" wait", ".", ".", "."], id="ellipsis of three tokens"),
        pytest.param([' "', "Yes", ',"', " he"], [' "', "Yes", ',"', " he"], id="quotes"),
        pytest.param([" '", "Yes", "'", " he"], [" '", "Yes", "'", " he"], id="single quotes"),
        pytest.param([" “", "Oui", "”"], [" “", "Oui", "”"], id="curly quotes"),
        pytest.param([" (", "my", " dog", ")", "."], [" (", "my", " dog", ")", "."], id="parentheses"),
        pytest.param([" don", "'t", " go"], [" don't", " go"], id="don't"),
        pytest.param([" don", "'", "t", " go"], [" don't", " go"], id="don't in three"),
        pytest.param([" don", "’", "t", " go"], [" don’t", " go"], id="don't with a curly one"),
        pytest.param([" dogs", "'", " tails"], [" dogs", "'", " tails"], id="apostrophe at the end"),
        pytest.param([" l", "'", "eau"], [" l'eau"], id="elision"),
        pytest.param([" twenty", "-", "three"], [" twenty-three"], id="hyphen"),
        pytest.param([" twenty", "-three"], [" twenty-three"], id="hyphen in the token"),
        pytest.param([" twenty", " -", " three"], [" twenty", " -", " three"], id="dash between spaces"),
        pytest.param([" so", "-"], [" so", "-"], id="hyphen at the end"),
        pytest.param([" 3", ".", "5", " kg"], [" 3.5", " kg"], id="decimal"),
        pytest.param([" 3", ".", "5", "."], [" 3.5", "."], id="decimal at the end"),
        pytest.param([" 10", ",", "000", ",", "000"], [" 10,000,000"], id="thousands"),
        pytest.param([" 10", ",", " 20"], [" 10", ",", " 20"], id="list of numbers"),
        pytest.param([" at", " 7", ":", "30"], [" at", " 7:30"], id="time"),
        pytest.param([" U", ".", "S", "."], [" U.S", "."], id="abbreviation"),
        pytest.param([" U", ".", "S", ".", " law"], [" U.S", ".", " law"], id="abbreviation within"),
        pytest.param([" AT", "&", "T"], [" AT&T"], id="ampersand"),
        pytest.param([" 50", "%"], [" 50", "%"], id="percent"),
        pytest.param([" $", "5"], [" $", "5"], id="currency"),
        pytest.param([" a", "/", "b"], [" a/b"], id="slash"),
        pytest.param([], [], id="nothing"),
        pytest.param([" "], [], id="blank"),
        pytest.param(["", " a", "", "b"], [" ab"], id="empty tokens"),
        pytest.param([" a", " ", " b"], [" a", "  b"], id="two spaces"),
        pytest.param([" a", "\n", "b"], [" a", "\nb"], id="line break"),
    ],
)
def test_words_of_english(pieces, expected):
    assert words(pieces) == expected


def test_special_tokens_belong_to_no_word():
    pieces = ["<|startoftranscript|>", "<|en|>", " Hel", "lo", "<|endoftext|>"]
    assert word_groups(pieces, [True, True, False, False, True]) == [(2, 3)]
    # One in the middle ends a word, whatever follows.
    assert word_groups([" a", "<s>", "b"], [False, True, False]) == [(0,), (2,)]
    assert word_groups(["<s>", "</s>"], [True, True]) == []


def test_special_token_after_a_binding_mark():
    assert word_groups([" go", ".", "<|endoftext|>"], [False, False, True]) == [(0,), (1,)]


# Parts of characters -------------------------------------------------------------------------------------------------


def test_byte_level_pieces():
    assert byte_level_piece("Ġdon") == " don"
    assert byte_level_piece("Ċ") == "\n"
    assert byte_level_piece("Ã©") == "é"  # é is C3 A9
    assert byte_level_piece("ä¸ĸçķĮ") == "世界"
    assert byte_level_piece("<|en|>") == "<|en|>"
    assert byte_level_piece("▁with space") == "▁with space"  # not of a byte-level vocabulary


@pytest.mark.parametrize("text", ["é", "ß", "世", "€", "😀", "ж", " é", "\x00"])
def test_parts_of_a_character_give_it_back(text):
    alphabet = _byte_alphabet()
    parts = [byte_level_piece(alphabet[b]) for b in text.encode()]
    assert len(parts) == len(text.encode())
    assert join_pieces(parts) == text
    sentencepiece = [sentencepiece_piece(f"<0x{b:02X}>") for b in text.encode()]
    assert sentencepiece == parts
    assert join_pieces(sentencepiece) == text


def _byte_alphabet():
    """GPT-2's table as its authors wrote it down."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table, extra = {}, 0
    for byte in range(256):
        table[byte] = chr(byte) if byte in kept else chr(256 + extra)
        extra += byte not in kept
    return table


def test_lonely_part_of_a_character_is_readable():
    assert join_pieces(["caf", "\udcc3"]) == "caf\\xc3"
    assert join_pieces(["\udca9"]) == "\\xa9"
    join_pieces(["\udcc3", " ", "\udca9"]).encode("utf-8")  # printable anywhere


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([" caf", "\udcc3", "\udca9", " noir"], [" café", " noir"], id="é at the end"),
        pytest.param([" \udcc3", "\udca9", "t", "é"], [" été"], id="é at the start"),
        pytest.param(["我", "\udce4\udcb8", "\udc96", "\udce7\udc95\udc8c"], ["我", "世", "界"], id="CJK in two"),
        pytest.param(["\udce4", "\udcb8", "\udc96", "界"], ["世", "界"], id="CJK in three"),
        pytest.param([" ok", " \udcf0\udc9f", "\udc98", "\udc80"], [" ok", " 😀"], id="emoji"),
        pytest.param([" (", "\udcc3", "\udca9", ")"], [" (", "é", ")"], id="after a mark"),
        pytest.param([" \udcc3", "\udc8e", "-", "le"], [" Î-le"], id="before a binding mark"),
    ],
)
def test_parts_of_a_character_stay_together(pieces, expected):
    assert words(pieces) == expected


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([" peut", "-", "\udcc3", "\udcaa", "tre"], id="after a binding mark"),
        pytest.param([" d", "'", "\udcc3", "\udca9", "t", "é"], id="after an apostrophe"),
    ],
)
def test_a_binding_mark_before_a_part_of_a_character(pieces):
    assert words(pieces) == [join_pieces(pieces)]


def test_part_of_a_character_after_a_special_token_starts_a_word():
    assert word_groups(["<s>", "\udca9"], [True, False]) == [(1,)]


# Scripts without spaces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param(["你", "好", "世界"], ["你", "好", "世界"], id="Chinese"),
        pytest.param(["你好", "，", "世界", "。"], ["你好", "，", "世界", "。"], id="Chinese with marks"),
        pytest.param(["これ", "は", "ペン", "です", "。"], ["これ", "は", "ペン", "です", "。"], id="Japanese"),
        pytest.param(["สวัส", "ดี"], ["สวัส", "ดี"], id="Thai"),
        pytest.param(["我", "用", "Hug", "ging", "脸"], ["我", "用", "Hugging", "脸"], id="Latin within"),
        pytest.param([" 안", "녕", " 세계"], [" 안녕", " 세계"], id="Korean has spaces"),
        pytest.param([" при", "вет", ",", " мир"], [" привет", ",", " мир"], id="Cyrillic"),
    ],
)
def test_words_of_other_scripts(pieces, expected):
    assert words(pieces) == expected


# SentencePiece -------------------------------------------------------------------------------------------------------


def test_sentencepiece_words():
    tokens = ["▁Hel", "lo", ",", "▁", "world", "▁(", "a", ")", "▁", "你", "好", "</s>"]
    pieces = [sentencepiece_piece(token) for token in tokens]
    found = word_groups(pieces, [token == "</s>" for token in tokens])
    assert found == [(0, 1), (2,), (3, 4), (5,), (6,), (7,), (8, 9), (10,)]
    assert join_pieces(pieces[3:5]) == " world"


def test_lone_space_token_belongs_to_the_word_it_introduces():
    assert word_groups([" ", "a", " ", " b", " ", ","], [False] * 6) == [(0, 1), (2, 3), (4, 5)]
    assert word_groups(["a", " "], [False] * 2) == [(0,)]  # and to none where none follows
    assert word_groups([" ", "<s>", "a"], [False, True, False]) == [(2,)]


def test_sentencepiece_pieces():
    assert sentencepiece_piece("▁don") == " don"
    assert sentencepiece_piece("▁") == " "
    assert sentencepiece_piece("<0x0A>") == "\n"
    assert sentencepiece_piece("<0xZZ>") == "<0xZZ>"
    assert sentencepiece_piece("</s>") == "</s>"


# Properties ----------------------------------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [" the", "a", "b", "é", " ", "", ".", ",", "'", "-", "...", " (", ")", "世", "界", "は", "3", " 5", "\n", "\udcc3"]
    + ["\udca9", "\udce4\udcb8", "\udc96", " \udcf0", "’s", "%", " -", "한"]
)
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcbf\udcc3\udcff"), max_size=4)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(FRAGMENTS | ANYTHING, st.booleans() | st.just(False)), max_size=25))
def test_groups_are_disjoint_ordered_and_complete(drawn):
    pieces, special = [p for p, _ in drawn], [s for _, s in drawn]
    groups = word_groups(pieces, special)
    flat = [k for group in groups for k in group]
    assert flat == sorted(set(flat))
    assert all(groups)
    needed = {k for k, piece in enumerate(pieces) if piece.strip() and not special[k]}
    assert needed <= set(flat) <= {k for k, piece in enumerate(pieces) if piece and not special[k]}
    for group in groups:  # no word reaches over a special token, or over another word's space
        assert not any(special[group[0] : group[-1] + 1])
        assert join_pieces([pieces[k] for k in group]).strip()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcdé"), min_size=1, max_size=8), st.data())
def test_words_of_plain_text_are_its_words_however_it_is_cut(letters, data):
    text = "".join(" " + letter * data.draw(st.integers(1, 5)) for letter in letters)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))) if len(text) > 1 else [])
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    if any(piece.rstrip() != piece and piece.strip() for piece in pieces) or any(" " in p[1:] for p in pieces):
        return  # tokens hold a space at their start only
    assert [word.strip() for word in words(pieces)] == text.split()


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.data())
def test_any_text_survives_being_cut_into_bytes(text, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))))
    alphabet = _byte_alphabet()
    bounds = zip([0, *cuts], [*cuts, len(raw)], strict=True)
    assert join_pieces([byte_level_piece("".join(alphabet[b] for b in raw[i:j])) for i, j in bounds]) == text
