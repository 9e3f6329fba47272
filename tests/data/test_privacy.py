"""Pseudonyms are stable under one key, useless without it, and the key stays private."""

import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.privacy import KEY_FILE, Pseudonymiser, load_key

keys = st.binary(min_size=32, max_size=32)


@settings(deadline=None)
@given(keys, st.text())
def test_pseudonyms_have_a_fixed_form_and_depend_on_key_and_kind(key, name):
    one = Pseudonymiser(key)
    assert one.patient(name) == Pseudonymiser(key).patient(name)
    assert one.patient(name)[:2] == "p-"
    assert len(one.patient(name)) == len(one.study(name)) == 18
    assert int(one.patient(name)[2:], 16) != int(one.study(name)[2:], 16)
    other = bytes([key[0] ^ 1]) + key[1:]
    assert one.patient(name) != Pseudonymiser(other).patient(name)


def test_the_key_is_made_once_and_readable_by_its_owner_only(tmp_path):
    key = load_key(tmp_path / "home")
    path = tmp_path / "home" / KEY_FILE
    assert load_key(tmp_path / "home") == key
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert load_key(tmp_path / "other") != key


def test_the_home_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDIOLOGY_HOME", str(tmp_path))
    assert load_key().hex() == (tmp_path / KEY_FILE).read_text()


def test_a_key_that_is_none_is_an_error(tmp_path):
    (tmp_path / KEY_FILE).write_text("no key")
    with pytest.raises(ValueError, match=r"no hexadecimal key; restore it, or delete it"):
        load_key(tmp_path)
    with pytest.raises(ValueError, match=r"key of 3 bytes; expected 32"):
        Pseudonymiser(b"abc")
