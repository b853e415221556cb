from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.errors import PreflightError
from ts_mps.torchserve import properties


def _file(tmp_path, content: bytes):
    path = tmp_path / "config.properties"
    path.write_bytes(content)
    return path


def test_values_and_lines(tmp_path):
    path = _file(
        tmp_path,
        b"# comment\r\n"
        b"\r\n"
        b"models={\\\r\n"
        b'  "a": 1\\\r\n'
        b"}\r\n"
        b"! another\r\n"
        b"separated by blank\r\n"
        b"colon : value with trailing blank \r\n"
        b"empty=\r\n"
        b"latin=\xe9 \\u00e9\r\n"
        b"twice=1\r\n"
        b"twice=2",
    )
    read = properties.read(path)
    assert dict(read.values) == {
        "models": '{"a": 1}',
        "separated": "by blank",
        "colon": "value with trailing blank ",
        "empty": "",
        "latin": "é é",
        "twice": "2",
    }
    assert dict(read.lines) == {"models": 3, "separated": 7, "colon": 8, "empty": 9, "latin": 10, "twice": 12}
    assert read.path == path


@pytest.mark.parametrize(
    ("content", "line", "named"),
    [
        (b"a=1\nno_separator\n", 2, "no_separator"),
        (b"# x\na=\\\n 1\nb=\\u12\n", 4, "\\u12"),
        (b"\xef\xbb\xbfa=1\n", 1, "byte order mark"),
        (b"\xff\xfea\x00", 1, "byte order mark"),
    ],
)
def test_malformed_line_is_named(tmp_path, content, line, named):
    path = _file(tmp_path, content)
    with pytest.raises(PreflightError) as caught:
        properties.read(path)
    assert caught.value.what.startswith(f"{path} line {line}: ")
    assert named in caught.value.what
    assert caught.value.remedy


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(PreflightError, match=str(path)):
            properties.read(path)


@given(values=st.dictionaries(st.text(min_size=1).filter(str.strip), st.text()))
def test_written_values_come_back(tmp_path_factory, values):
    # A lone surrogate is no text that a file could have held.
    values = {
        key: text for key, text in values.items() if not any(0xD800 <= ord(letter) <= 0xDFFF for letter in key + text)
    }
    path = tmp_path_factory.mktemp("p") / "c"
    properties.write(path, values, "one\ntwo")
    assert path.read_bytes().isascii()
    assert dict(properties.read(path).values) == values


def test_only_the_owner_can_read_it(tmp_path):
    path = tmp_path / "c"
    properties.write(path, {"keystore_pass": "secret"}, "note")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in repr(properties.read(path))


def test_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "c"
    properties.write(path, {"a": "1"}, "note")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(properties.Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        properties.write(path, {"a": "2"}, "note")
    assert dict(properties.read(path).values) == {"a": "1"}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
