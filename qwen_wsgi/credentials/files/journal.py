"""What must survive a crash between spending a refresh token and publishing its successor.

One file per credential file, beside our lock (`.qwen-proxy/journal.json`), shared by all workers.
It is the write-ahead log for a value that exists nowhere else, and the memory of failures that all
workers must share. Fields of the JSON object, each absent when there is nothing to say:

    intent      {"fp", "pid", "at_ms", "attempt"}: a refresh token is about to be sent
    received    {"spent", "document", "at_ms", "lifetime_ms", "forced", "published"}: the latest
                login that we fetched, or saw in the shared file
    tombstones  {fp: at_ms}: refresh tokens that the endpoint refused
    spent       {fp: at_ms}: refresh tokens that we gave for a successor
    backoff     {"fp", "failures", "not_before_ms", "outcome", "at_ms"}
    forced_at_ms   last refresh that a refused access token asked for
    closed      fp of the access token that a refresh brought and the API refused all the same

Times are wall-clock milliseconds, because processes and boots have no other clock in common.
Refresh tokens appear as fingerprints, except inside `document`, which is why the file is 0600.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from qwen_wsgi.credentials.files import document
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.watched import FileIdentity, Unusable

P = TypeVar("P")

#: Tombstones are kept for the latest few refused tokens: an older one can hardly come back.
MAX_TOMBSTONES: Final = 16

#: Spent tokens are remembered for a few weeks of a login that is renewed every few hours: a backup
#: that is restored, or a copy in the environment, must not have a spent token sent again.
MAX_SPENT: Final = 128

_REMEDY: Final = "Remove the file: without it the login in qwen-code's own file counts."


def fingerprint(token: str) -> str:
    """A name for a token that tells nothing about it: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Intent:
    """A refresh token that was, or was about to be, sent."""

    fp: str
    pid: int
    at_ms: int
    attempt: str


@dataclass(frozen=True)
class Received:
    """A login that the token endpoint gave us, or that somebody else put into the shared file.

    Attributes:
        spent: fingerprint of the refresh token that was given for it; empty if it is not ours.
        lifetime_ms: of its access token; None if it is not ours.
        forced: it was asked for because the API refused the access token before.
        published: it was written to the shared file.
    """

    spent: str
    login: CredentialDocument
    at_ms: int
    lifetime_ms: int | None
    forced: bool
    published: bool


@dataclass(frozen=True)
class Backoff:
    """Why, and until when, no attempt is made with the refresh token `fp`."""

    fp: str
    failures: int
    not_before_ms: int
    outcome: str
    at_ms: int


@dataclass(frozen=True)
class Journal:
    """One version of the journal; immutable, changed by `dataclasses.replace`."""

    intent: Intent | None = None
    received: Received | None = None
    tombstones: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    backoff: Backoff | None = None
    forced_at_ms: int | None = None
    closed: str | None = None
    spent: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def with_tombstone(self, fp: str, at_ms: int) -> Journal:
        """The journal with one more refused refresh token, the oldest forgotten."""
        return replace(self, tombstones=_latest({**self.tombstones, fp: at_ms}, MAX_TOMBSTONES))

    def with_spent(self, fp: str, at_ms: int) -> Journal:
        """The journal with one more spent refresh token, the oldest forgotten."""
        return replace(self, spent=_latest({**self.spent, fp: at_ms}, MAX_SPENT))


def _latest(times: Mapping[str, int], count: int) -> Mapping[str, int]:
    names = sorted(times, key=lambda name: times[name])[-count:]
    return MappingProxyType({name: times[name] for name in names})


def render(journal: Journal) -> bytes:
    """The journal as the content of its file."""
    value: dict[str, Any] = {"version": 1}
    if journal.intent is not None:
        value["intent"] = vars(journal.intent)
    if (received := journal.received) is not None:
        value["received"] = {
            "spent": received.spent,
            "document": dict(received.login.raw),
            "at_ms": received.at_ms,
            "lifetime_ms": received.lifetime_ms,
            "forced": received.forced,
            "published": received.published,
        }
    if journal.tombstones:
        value["tombstones"] = dict(journal.tombstones)
    if journal.spent:
        value["spent"] = dict(journal.spent)
    if journal.backoff is not None:
        value["backoff"] = vars(journal.backoff)
    if journal.forced_at_ms is not None:
        value["forced_at_ms"] = journal.forced_at_ms
    if journal.closed is not None:
        value["closed"] = journal.closed
    return json.dumps(value, indent=2).encode()


def parse(content: bytes, identity: FileIdentity | None = None) -> Journal:
    """Read a journal. A part that is not understood is left out, so that a newer version's journal
    costs what it does not share, and no more.

    Raises:
        Unusable: it is no JSON object.
    """
    try:
        value = json.loads(content)
    except ValueError:
        raise Unusable("is no JSON", remedy=_REMEDY) from None
    if not isinstance(value, dict):
        raise Unusable("is no JSON object", remedy=_REMEDY)
    return Journal(
        intent=_part(Intent, value.get("intent")),
        received=_received(value.get("received")),
        tombstones=_times(value.get("tombstones")),
        backoff=_part(Backoff, value.get("backoff")),
        forced_at_ms=_integer(value.get("forced_at_ms")),
        closed=value.get("closed") if isinstance(value.get("closed"), str) else None,
        spent=_times(value.get("spent")),
    )


def _times(value: object) -> Mapping[str, int]:
    if not isinstance(value, dict):
        return MappingProxyType({})
    return MappingProxyType({str(fp): int(at) for fp, at in value.items() if isinstance(at, int)})


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _part(kind: type[P], value: object) -> P | None:
    if not isinstance(value, dict):
        return None
    known: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]  # the callers' are dataclasses
        item = value.get(each.name)
        # Annotations are texts here. A wrong type would fail later, in the middle of a request.
        if isinstance(item, bool) or not isinstance(item, str if each.type == "str" else int):
            return None
        known[each.name] = item
    return kind(**known)


def _received(value: object) -> Received | None:
    if not isinstance(value, dict):
        return None
    try:
        login = document.parse(json.dumps(value["document"]).encode(), None)
        return Received(
            spent=str(value["spent"]),
            login=login,
            at_ms=int(value["at_ms"]),
            lifetime_ms=_integer(value["lifetime_ms"]),
            forced=bool(value.get("forced")),
            published=bool(value.get("published")),
        )
    except (KeyError, TypeError, ValueError, OverflowError):  # Unusable is a ValueError
        return None


class Newest(NamedTuple):
    """Which login counts.

    Attributes:
        login: None when there is none at all.
        source: where it is from.
        unpublished: the shared file lacks it, and should get it at the next opportunity.
    """

    login: CredentialDocument | None
    source: Literal["shared", "journal"]
    unpublished: bool = False


def newest(shared: CredentialDocument | None, journal: Journal) -> Newest:
    """Choose between the shared file's login and the journal's.

    The journal counts when the shared file holds a refresh token that we spent (it lags behind, or
    is a restored backup), or is gone (the CLI deletes it when a refresh of its own is refused).
    Anything else in the shared file is somebody's newer login or refresh, and wins.
    """
    received = journal.received
    if received is None:
        return Newest(shared, "shared")
    if shared is None:
        # Not re-created from here: it may have been a logout. `creds forget` removes the journal.
        return Newest(received.login, "journal")
    shared_fp = fingerprint(shared.refresh_token)
    if shared_fp == fingerprint(received.login.refresh_token):
        # In sync, or an endpoint that does not rotate: then the later access token counts.
        if received.login.expires_at_ms > shared.expires_at_ms:
            return Newest(received.login, "journal", unpublished=True)
        return Newest(shared, "shared")
    if shared_fp == received.spent or shared_fp in journal.spent:
        return Newest(received.login, "journal", unpublished=True)
    return Newest(shared, "shared")
