"""Which of two logins is the newest: by descent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.credentials.files import document
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.shared import record
from qwen_wsgi.credentials.shared.agreement import Local, Verdict, decide
from qwen_wsgi.credentials.shared.record import Record
from tests.kit.properties import examples


def login(name: str, *, at: int = 1_000) -> CredentialDocument:
    return CredentialDocument(f"access-{name}", f"refresh-{name}", "Bearer", None, at, {}, None)


def fp(name: str) -> str:
    return fingerprint(f"refresh-{name}")


def local(name: str, *line: str, agreed: str = "", at: int = 1_000, **more: Any) -> Local:
    ancestors = tuple(map(fp, line))
    spent = dict.fromkeys(ancestors, 1)
    return Local(login(name, at=at), ancestors, spent, agreed=fp(agreed) if agreed else "", **more)


def shared(name: str, *line: str, at: int = 1_000, **more: Any) -> Record:
    ancestors = tuple(map(fp, line))
    spent = dict.fromkeys(ancestors, 1)
    return Record(login(name, at=at), line=ancestors, spent=spent, **more)


GONE = {fp("A"): 1}


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        (local("A"), shared("A"), Verdict.SAME),
        (local("A"), shared("B", "A"), Verdict.TAKE),
        (local("B", "A"), shared("A"), Verdict.GIVE),
        # A spent token is older, whatever its date says.
        (local("A", at=9_000), shared("B", "A", at=1), Verdict.TAKE),
        (local("B", "A", at=1), shared("A", at=9_000), Verdict.GIVE),
        # An endpoint that does not rotate.
        (local("A", at=2_000), shared("A", at=1_000), Verdict.GIVE),
        (local("A", at=1_000), shared("A", at=2_000), Verdict.TAKE),
        # Only one side has changed since they agreed: it is a new login there.
        (local("A", agreed="A", at=9_000), shared("X"), Verdict.TAKE),
        (local("X", agreed="A"), shared("A", at=9_000), Verdict.GIVE),
        # Both have: a login of a person wins over a renewal.
        (local("B", "A", agreed="A", at=9_000), shared("X"), Verdict.TAKE),
        (local("X", agreed="A"), shared("B", "A", at=9_000), Verdict.GIVE),
        # Two logins of persons: the later one.
        (local("X", agreed="A", at=2_000), shared("Y", at=1_000), Verdict.GIVE),
        (local("X", agreed="A", at=1_000), shared("Y", at=2_000), Verdict.TAKE),
        # A box joins with a login of its own.
        (local("X", at=2_000), shared("Y", at=1_000), Verdict.GIVE),
        (local("X", at=1_000), shared("Y", at=2_000), Verdict.TAKE),
        # Nobody else, or nobody here.
        (local("A"), None, Verdict.GIVE),
        (Local(None), shared("A"), Verdict.TAKE),
        (Local(None), None, Verdict.NOTHING),
        (Local(None), Record(), Verdict.NOTHING),
        # Logouts.
        (Local(None, gone=GONE), shared("A"), Verdict.GIVE_LOGOUT),
        (Local(None, gone=GONE), shared("B", "A"), Verdict.GIVE_LOGOUT),
        (Local(None, gone=GONE), shared("X"), Verdict.TAKE),
        (Local(None, gone=GONE), None, Verdict.GIVE_LOGOUT),
        (local("A", gone=GONE), shared("A"), Verdict.GIVE_LOGOUT),
        (local("X", gone=GONE), shared("A"), Verdict.GIVE),
        (local("A"), Record(gone=GONE), Verdict.FORGET),
        (local("B", "A"), Record(gone=GONE), Verdict.FORGET),
        (local("X"), Record(gone=GONE), Verdict.GIVE),
        (local("A"), shared("X", gone=GONE), Verdict.TAKE),
    ],
)
def test_which_one_counts(mine: Local, theirs: Record | None, verdict: Verdict) -> None:
    assert decide(mine, theirs) is verdict


NAMES = st.sampled_from("ABCDEF")


@given(NAMES, NAMES, st.integers(1, 9), st.integers(1, 9))
def test_two_boxes_with_their_own_logins_choose_the_same_one(
    one: str, other: str, at: int, then: int
) -> None:
    """Else each would give its own for ever."""
    here = decide(local(one, at=at), shared(other, at=then))
    there = decide(local(other, at=then), shared(one, at=at))

    assert (here, there) in (
        (Verdict.TAKE, Verdict.GIVE),
        (Verdict.GIVE, Verdict.TAKE),
        (Verdict.SAME, Verdict.SAME),
    )


@given(st.lists(NAMES, min_size=1, unique=True), st.lists(NAMES, unique=True), st.integers(1, 9))
def test_what_was_taken_is_the_same_afterwards(line: list[str], spent: list[str], at: int) -> None:
    theirs = shared(line[-1], *line[:-1], at=at)
    mine = Local(theirs.login, theirs.line, dict.fromkeys(map(fp, spent), 1), agreed=theirs.fp)

    assert decide(mine, theirs) is Verdict.SAME


TIMES = st.dictionaries(st.text("0123456789abcdef", min_size=16, max_size=16), st.integers(0, 9))


@given(TIMES, TIMES, TIMES, st.lists(st.text(max_size=5)), st.booleans())
@examples(40)
def test_a_record_survives_the_way(
    spent: dict[str, int], refused: dict[str, int], gone: dict[str, int], line: list[str], out: bool
) -> None:
    raw = {
        "access_token": "a",
        "refresh_token": "r",
        "token_type": "Bearer",
        "expiry_date": 5,
        "unknown": [1],
    }
    found = None if out else document.parse(document_bytes(raw), None)
    before = Record(found, 7, None, True, "box", tuple(line), spent, refused, gone)

    after = record.parse(record.render(before))

    assert after == before
    assert after.login is None or after.login.raw["unknown"] == [1]


def document_bytes(raw: dict[str, Any]) -> bytes:
    import json

    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "document": {}}']
)
def test_what_is_no_record_is_refused(content: bytes) -> None:
    with pytest.raises(Unusable):
        record.parse(content)
