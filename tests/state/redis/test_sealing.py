"""What is sealed is read by boxes with the key, and by nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.state.redis.sealing import Damaged, Seal, WrongKey
from tests.kit.properties import examples

KEY, NEXT = "k" * 32, "n" * 32


@given(st.binary(max_size=200), st.text(max_size=20))
@examples(30)
def test_what_is_sealed_is_opened_by_the_same_key(content: bytes, name: str) -> None:
    sealed = Seal([KEY]).seal(name, content)

    assert Seal([KEY]).open(name, sealed) == content
    assert Seal([NEXT, KEY]).open(name, sealed) == content
    assert len(content) < 8 or content not in sealed


def test_the_same_content_is_never_sealed_the_same() -> None:
    seal = Seal([KEY])

    assert seal.seal("oauth", b"x") != seal.seal("oauth", b"x")


def test_another_key_is_told_by_its_id_which_says_nothing_about_it() -> None:
    sealed = Seal([KEY]).seal("oauth", b"x")

    with pytest.raises(WrongKey) as caught:
        Seal([NEXT]).open("oauth", sealed)

    assert caught.value.key_id == Seal([KEY]).key_id != Seal([NEXT]).key_id
    assert KEY.encode() not in sealed


def test_the_newest_key_seals() -> None:
    both = Seal([NEXT, KEY])

    assert both.key_ids == (Seal([NEXT]).key_id, Seal([KEY]).key_id)
    assert Seal([NEXT]).open("oauth", both.seal("oauth", b"x")) == b"x"


def test_a_record_cannot_be_moved_to_another_name() -> None:
    seal = Seal([KEY])

    with pytest.raises(Damaged):
        seal.open("oauth-work", seal.seal("oauth", b"x"))


@given(st.integers(0), st.integers(1, 255))
@examples(60)
def test_whatever_is_changed_is_noticed(where: int, by: int) -> None:
    seal = Seal([KEY])
    sealed = bytearray(seal.seal("oauth", b"a login"))
    sealed[where % len(sealed)] ^= by

    with pytest.raises((Damaged, WrongKey)):
        seal.open("oauth", bytes(sealed))


@pytest.mark.parametrize("text", [b"", b"1", b"2 a b c", b"1 \xff b c", b"1 00000000 b c d"])
def test_what_was_never_sealed_is_refused(text: bytes) -> None:
    with pytest.raises((Damaged, WrongKey)):
        Seal([KEY]).open("oauth", text)
