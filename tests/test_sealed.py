"""Sealed texts: any change is found."""

import json

import pytest

from clsim.sealed import begun, file_digest, sealed, unsealed

CONTENT = {"a": [1, 2.5, None], "é": {"nested": "text, with a comma"}, "nan": 1e400}


def test_what_is_sealed_comes_back_and_is_plain_json():
    text = sealed(CONTENT)
    assert unsealed(text) == CONTENT
    assert list(json.loads(text)) == ["digest", *CONTENT]


def test_every_changed_character_is_found():
    text = sealed(CONTENT)
    for place in range(len('{"digest": "'), len(text)):
        changed = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
        with pytest.raises(ValueError):
            unsealed(changed)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\0" * 50])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):
        unsealed(text)


def test_json_without_a_digest_is_of_an_earlier_version():
    assert unsealed('{"a": 1}') == {"a": 1}


def test_the_hash_of_a_files_beginning(tmp_path):
    (tmp_path / "file").write_bytes(b"abcdef")
    (tmp_path / "first").write_bytes(b"abc")
    assert begun(tmp_path / "file", 3).hexdigest() == file_digest(tmp_path / "first")
    assert begun(tmp_path / "file", 6).hexdigest() == file_digest(tmp_path / "file")
    assert begun(tmp_path / "file", 7) is None and begun(tmp_path / "nowhere", 1) is None
    assert begun(tmp_path / "nowhere", 0) is not None
