"""The journal's content, and the rule by which it counts or not."""

from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.credentials.files import document, journal
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import (
    MAX_TOMBSTONES,
    Backoff,
    Closed,
    Forced,
    Intent,
    Journal,
    Newest,
    Received,
    fingerprint,
    newest,
)
from qwen_wsgi.credentials.files.watched import Unusable


def login(
    refresh: str = "rt-1", access: str = "at-1", expires_ms: int = 1000
) -> CredentialDocument:
    raw = {
        "access_token": access,
        "token_type": "Bearer",
        "refresh_token": refresh,
        "expiry_date": expires_ms,
    }
    return document.parse(json.dumps(raw).encode(), None)


def received(spent: str, new: CredentialDocument, **more: Any) -> Received:
    values = {"at_ms": 1, "lifetime_ms": 1000, "forced": False, "published": False, **more}
    return Received(fingerprint(spent), new, **values)


TIMES = st.integers(0, 2**53)
WORDS = st.text(max_size=20)
PRINTS = st.text("0123456789abcdef", min_size=16, max_size=16)
LOGINS = st.builds(
    lambda refresh, access, expires, more: document.parse(
        json.dumps(
            {
                **more,
                "access_token": access,
                "token_type": "Bearer",
                "refresh_token": refresh,
                "expiry_date": expires,
            }
        ).encode(),
        None,
    ),
    st.text(min_size=1, max_size=20),
    st.text(min_size=1, max_size=20),
    st.integers(1, 2**52),
    st.dictionaries(WORDS, st.none() | st.booleans() | st.integers() | WORDS, max_size=3),
)
JOURNALS = st.builds(
    Journal,
    intent=st.none() | st.builds(Intent, PRINTS, st.integers(1, 2**22), TIMES, PRINTS),
    received=st.none()
    | st.builds(
        Received, PRINTS, LOGINS, TIMES, TIMES, st.booleans(), st.booleans(), st.booleans()
    ),
    tombstones=st.dictionaries(PRINTS, TIMES, max_size=4).map(MappingProxyType),
    backoff=st.none() | st.builds(Backoff, PRINTS, st.integers(1, 99), TIMES, WORDS, TIMES),
    forced=st.none() | st.builds(Forced, PRINTS, st.lists(TIMES, max_size=3).map(tuple)),
    closed=st.none() | st.builds(Closed, PRINTS, TIMES),
)


@given(JOURNALS)
def test_what_is_written_is_read(value: Journal) -> None:
    again = journal.parse(journal.render(value))

    assert dataclasses.replace(again, received=None) == dataclasses.replace(value, received=None)
    if value.received is None:
        assert again.received is None
    else:
        assert again.received is not None
        assert dict(again.received.login.raw) == dict(value.received.login.raw)
        assert again.received == value.received


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.just("received"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
PARTS = ("intent", "received", "tombstones", "backoff", "forced", "closed", "version", "new")
RECEIVED = st.fixed_dictionaries(
    {"spent": JSON, "document": JSON | st.just(dict(login().raw)), "at_ms": JSON},
    optional={"lifetime_ms": JSON, "forced": JSON, "published": JSON, "answered": JSON},
)


def test_a_closed_login_of_an_earlier_version_has_another_chance() -> None:
    assert journal.parse(b'{"closed": "0123456789abcdef"}').closed == Closed("0123456789abcdef", 0)


@given(st.dictionaries(st.sampled_from(PARTS), JSON | RECEIVED))
def test_any_object_is_a_journal(value: dict[str, Any]) -> None:
    """Of a newer version, or edited: what is not understood is left out, and nothing breaks."""
    found = journal.parse(json.dumps(value).encode())

    assert journal.parse(journal.render(found)) == found


@given(st.fixed_dictionaries({"intent": JSON}), st.integers(1, 9))
def test_a_part_with_members_of_another_kind(value: dict[str, Any], pid: int) -> None:
    """What is left in does arithmetic with its members."""
    members: tuple[Any, ...] = (value["intent"], "soon", None, 1.5, True, [], {})
    for member in members:
        told = {
            "intent": {"fp": "a", "pid": pid, "at_ms": member, "attempt": "b"},
            "backoff": {
                "fp": "a",
                "failures": 1,
                "not_before_ms": member,
                "outcome": "x",
                "at_ms": 1,
            },
        }
        found = journal.parse(json.dumps(told).encode())

        assert found.intent is None or isinstance(found.intent.at_ms, int)
        assert found.backoff is None or isinstance(found.backoff.not_before_ms, int)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}}", b"\x00" * 100]
)
def test_what_is_no_journal_says_what_to_do(content: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        journal.parse(content)

    assert "Remove the file" in caught.value.remedy


def test_an_empty_journal_says_nothing() -> None:
    assert journal.parse(b"{}") == Journal()
    assert journal.render(Journal()) == b'{\n  "version": 1\n}'


def test_no_refresh_token_outside_the_document() -> None:
    kept = Journal(
        intent=Intent(fingerprint("rt-old"), 1, 2, "a"),
        received=received("rt-old", login("rt-new")),
    ).with_tombstone(fingerprint("rt-older"), 5)
    value = json.loads(journal.render(kept))
    del value["received"]["document"]

    assert "rt-" not in json.dumps(value)


def test_the_oldest_tombstones_are_forgotten() -> None:
    kept = Journal()
    for number in range(MAX_TOMBSTONES + 5):
        kept = kept.with_tombstone(f"{number:016x}", 1000 + number)

    assert len(kept.tombstones) == MAX_TOMBSTONES
    assert list(kept.tombstones) == [f"{n:016x}" for n in range(5, MAX_TOMBSTONES + 5)]
    assert kept.with_tombstone(f"{9:016x}", 5000).tombstones[f"{9:016x}"] == 5000


OLD, NEW, OTHER = login("rt-old", "at-old"), login("rt-new", "at-new", 2000), login("rt-x", "at-x")
RECEIVED_NEW = received("rt-old", NEW)
SAME = login("rt-old", "at-later", 5000)


@pytest.mark.parametrize(
    ("shared", "kept", "expected"),
    [
        # Without anything received the file counts, whatever else the journal says.
        (None, None, Newest(None, "shared")),
        (OLD, None, Newest(OLD, "shared")),
        # (a) The file has the token that was spent: a crash before it was replaced.
        (OLD, RECEIVED_NEW, Newest(NEW, "journal", unpublished=True)),
        # (a) The file is gone: served, and not re-created from here.
        (None, RECEIVED_NEW, Newest(NEW, "journal")),
        # (b) In sync.
        (NEW, RECEIVED_NEW, Newest(NEW, "shared")),
        # (c) Somebody's login or refresh.
        (OTHER, RECEIVED_NEW, Newest(OTHER, "shared")),
        # An endpoint that does not rotate: spent and new are the same, the later token counts.
        (OLD, received("rt-old", SAME), Newest(SAME, "journal", unpublished=True)),
        (SAME, received("rt-old", OLD), Newest(SAME, "shared")),
        (SAME, received("rt-old", SAME), Newest(SAME, "shared")),
        # Somebody went on from ours without a rotation: theirs is later.
        (
            login("rt-new", "at-3", 9000),
            RECEIVED_NEW,
            Newest(login("rt-new", "at-3", 9000), "shared"),
        ),
    ],
)
def test_which_login_is_newest(
    shared: CredentialDocument | None, kept: Received | None, expected: Newest
) -> None:
    full = Journal(
        intent=Intent("f", 1, 2, "a"),
        received=kept,
        tombstones=MappingProxyType({fingerprint("rt-old"): 1}),
    )

    assert newest(shared, full) == expected
    assert newest(shared, Journal(received=kept)) == expected
