import json

import pytest

from spes_hf.files import TextFileError, read_json, read_json_lines, read_lines, read_table, read_text

TEXTS = ["Grüße", "ein \u2028 zwei \x0b drei \x85 vier \x1c", "", "日本語", "Привет мир", "สวัสดี"]


@pytest.fixture
def file(tmp_path):
    def write(content, name="file.txt"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lines_are_those_that_were_written(file, encoding, end):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    for last in ("", end):
        path = file((mark + end.join([*TEXTS, "last"]) + last).encode(encoding))
        assert read_lines(path) == [*TEXTS, "last"]


def test_files_without_a_line_feed(file):
    assert read_lines(file(b"")) == []
    assert read_lines(file(b"one")) == ["one"]
    assert read_lines(file(b"one\rtwo\r")) == ["one", "two"]
    assert read_lines(file(b"one\r still one\ntwo\r\n")) == ["one\r still one", "two"]


def test_marks_where_files_were_joined_go(file):
    path = file("eins\n".encode("utf-8-sig") + "zw\ufeffei\n".encode("utf-8-sig"))
    assert read_lines(path) == ["eins", "zw\ufeffei"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["one\ntwo words\n", "Привет, мир\n", "สวัสดี\n", "ελληνικά\n", "id,text\r\n1,a\r\n"])
def test_utf16_without_a_mark_is_refused(file, text, encoding):
    with pytest.raises(
        TextFileError, match="file.txt.*UTF-16 without a byte order mark.*iconv -f UTF-16[LB]E -t UTF-8"
    ):
        read_text(file(text.encode(encoding)))


def test_latin1_is_refused_with_its_place(file):
    message = r"file.txt:2: is not UTF-8 at column 4 \(byte 0xe4 at offset 8\), perhaps Latin-1.*CSV UTF-8.*iconv"
    with pytest.raises(TextFileError, match=message):
        read_text(file("abc\nöK-".encode() + "äse\n".encode("latin-1")))


def test_a_damaged_file_with_a_mark_is_refused(file):
    with pytest.raises(TextFileError, match="file.txt: starts as UTF-16, but byte 4 is wrong"):
        read_text(file("ab".encode("utf-16")[:5]))


def test_nul_goes_with_a_warning(file):
    path = file(b"one\nt\0wo\0\n")
    with pytest.warns(UserWarning, match="file.txt: removed 2 NUL characters, the first in line 2"):
        assert read_lines(path) == ["one", "two"]


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines(file, encoding):
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    assert read_json_lines(file("\r\n \r\n".join(lines).encode(encoding))) == rows
    assert read_json(file(lines[1].encode(encoding))) == rows[1]


def test_control_characters_may_be_in_json(file):
    assert read_json_lines(file(b'{"text": "a\x0bb\tc"}\n')) == [{"text": "a\x0bb\tc"}]
    assert read_json(file(b'{"text": "a\x0bb\r\nc"}\n')) == {"text": "a\x0bb\r\nc"}


def test_wrong_json_is_refused_with_its_line(file):
    with pytest.raises(TextFileError, match="file.txt:2: is not JSON.*one object per line"):
        read_json_lines(file(b"{}\n{\n"))
    with pytest.raises(TextFileError, match="file.txt:1: is a list; a JSON-lines file has one object per line"):
        read_json_lines(file(b"[]\n"))
    with pytest.raises(TextFileError, match="file.txt: is not JSON.*line 2 column 1"):
        read_json(file(b"{\n"))


# Tables ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_as_excel_writes_them(file, encoding, delimiter):
    lines = ["id;text;", '1;"say ""so""; \u2028 or\r\nno, ";', "", "2", "3;\x0bx;;"]
    content = "\r\n".join(lines).replace(";", delimiter).encode(encoding)
    expected = [
        {"id": "1", "text": 'say "so"; \u2028 or\r\nno, '.replace(";", delimiter)},
        {"id": "2", "text": ""},
        {"id": "3", "text": "\x0bx"},
    ]
    assert read_table(file(content, "file.csv")) == expected
    if delimiter == "\t":
        assert read_table(file(content, "file.tsv")) == expected


def test_tables_with_a_hint_to_excel(file):
    assert read_table(file(b"sep=|\r\nid|a,b\r\n1|2\r\n", "file.csv")) == [{"id": "1", "a,b": "2"}]
    with pytest.raises(TextFileError, match="file.csv:3: cannot be read: it has more cells"):
        read_table(file(b"sep=|\nid|a\n1|2|3\n", "file.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,text\n1,one, two\n", "file.csv:2: cannot be read: it has more cells than the 2 columns.*put double"),
        (b'id,text\n1,"one\n2,two\n', "file.csv:2: cannot be read: unexpected end of data"),
        (b'id,text\n1,"one" two\n', "file.csv:2: cannot be read: ',' expected"),
        (b"id,text\n1,caf\xe9\n", "file.csv:2: is not UTF-8 at column 6"),
    ],
)
def test_wrong_tables_are_refused_with_their_line(file, content, message):
    with pytest.raises(TextFileError, match=message):
        read_table(file(content, "file.csv"))
