"""The journal: what must survive a crash while a refresh token is exchanged for its successor.

One file per credential file, beside our lock (`.qwen-proxy/journal.json`), shared by all workers.
It is the write-ahead log for a value that exists nowhere else, and the record of failures that all
workers share. Fields of the JSON object, each absent when it has no value:

    intent      {"fp", "pid", "at_ms", "attempt"}: a refresh token is about to be sent
    received    {"spent", "document", "at_ms", "lifetime_ms", "forced", "published", "answered"}:
                the latest login that we fetched, or saw in the shared file
    tombstones  {fp: at_ms}: refresh tokens that the endpoint refused
    spent       {fp: at_ms}: refresh tokens that we exchanged for a successor
    backoff     {"fp", "failures", "not_before_ms", "outcome", "at_ms"}
    forced      {"fp", "at_ms": [...]}: the latest refreshes because of a refused access token, of
                the login whose refresh token has this fp now
    closed      {"fp", "at_ms"}: the access token that a refresh brought and the API still refused,
                and when it did so last; 0 when it is to be given another chance
    line        [fp, ...]: the refresh tokens that the latest login came from, the latest last
    gone        {fp: at_ms}: logins that a person has forgotten on purpose, for all boxes
    agreed      fp of the login on which this box and the others agreed last (docs/boxes.md)

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

#: Enough for a few weeks of a login that is refreshed every few hours: a restored backup, or a copy
#: in the environment, must not cause a spent token to be sent again.
MAX_SPENT: Final = 128

#: Of how many renewals a login remembers that it came from them.
MAX_LINE: Final = 128

_REMEDY: Final = "Remove the file: then the login in qwen-code's own file is used."


def fingerprint(token: str) -> str:
    """A name for a token that reveals nothing about it: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Intent:
    """Records that a refresh token was, or was about to be, sent."""

    fp: str
    pid: int
    at_ms: int
    attempt: str


@dataclass(frozen=True)
class Received:
    """A login from the token endpoint, or one that another program put into the shared file.

    Attributes:
        spent: fingerprint of the refresh token that we exchanged for it; empty if we did not fetch
            it.
        lifetime_ms: of its access token; None if we did not fetch it.
        forced: it was fetched because the API had refused the access token before it.
        published: it was written to the shared file.
        answered: the API has accepted its access token; recorded where `forced` is true.
    """

    spent: str
    login: CredentialDocument
    at_ms: int
    lifetime_ms: int | None
    forced: bool
    published: bool
    answered: bool = False


@dataclass(frozen=True)
class Backoff:
    """Why and until when no attempt is made with the refresh token `fp`."""

    fp: str
    failures: int
    not_before_ms: int
    outcome: str
    at_ms: int


@dataclass(frozen=True)
class Closed:
    """Which access token the API refuses for good, as it seems, and when it did so last."""

    fp: str
    at_ms: int


@dataclass(frozen=True)
class Forced:
    """When a login was refreshed because of a refused access token, the latest last.

    Attributes:
        fp: of the login's present refresh token.
    """

    fp: str
    at_ms: tuple[int, ...]


@dataclass(frozen=True)
class Journal:
    """One version of the journal; immutable, changed by `dataclasses.replace`."""

    intent: Intent | None = None
    received: Received | None = None
    tombstones: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    backoff: Backoff | None = None
    forced: Forced | None = None
    closed: Closed | None = None
    spent: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    line: tuple[str, ...] = ()
    gone: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    agreed: str = ""

    def with_tombstone(self, fp: str, at_ms: int) -> Journal:
        """Return the journal with one more refused refresh token, without the oldest."""
        return replace(self, tombstones=latest({**self.tombstones, fp: at_ms}, MAX_TOMBSTONES))

    def with_spent(self, fp: str, at_ms: int) -> Journal:
        """Return the journal with one more spent refresh token, without the oldest."""
        return replace(self, spent=latest({**self.spent, fp: at_ms}, MAX_SPENT))


def latest(times: Mapping[str, int], count: int) -> Mapping[str, int]:
    """The entries with the latest times."""
    names = sorted(times, key=lambda name: times[name])[-count:]
    return MappingProxyType({name: times[name] for name in names})


def render(journal: Journal) -> bytes:
    """Render the journal as the content of its file."""
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
            "answered": received.answered,
        }
    if journal.tombstones:
        value["tombstones"] = dict(journal.tombstones)
    if journal.spent:
        value["spent"] = dict(journal.spent)
    if journal.backoff is not None:
        value["backoff"] = vars(journal.backoff)
    if journal.forced is not None:
        value["forced"] = vars(journal.forced)
    if journal.closed is not None:
        value["closed"] = vars(journal.closed)
    if journal.line:
        value["line"] = list(journal.line)
    if journal.gone:
        value["gone"] = dict(journal.gone)
    if journal.agreed:
        value["agreed"] = journal.agreed
    return json.dumps(value, indent=2).encode()


def parse(content: bytes, identity: FileIdentity | None = None) -> Journal:
    """Parse a journal. Unknown or damaged parts are left out, so that the journal of a newer
    qwen-proxy stays usable.

    Raises:
        Unusable: it is not a JSON object.
    """
    try:
        value = json.loads(content)
    except ValueError:
        raise Unusable("is not JSON", remedy=_REMEDY) from None
    if not isinstance(value, dict):
        raise Unusable("is not a JSON object", remedy=_REMEDY)
    return Journal(
        intent=_part(Intent, value.get("intent")),
        received=_received(value.get("received")),
        tombstones=_times(value.get("tombstones")),
        backoff=_part(Backoff, value.get("backoff")),
        forced=_forced(value.get("forced")),
        closed=_closed(value.get("closed")),
        spent=_times(value.get("spent")),
        line=_line(value.get("line")),
        gone=_times(value.get("gone")),
        agreed=_text(value.get("agreed")),
    )


def _line(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _times(value: object) -> Mapping[str, int]:
    if not isinstance(value, dict):
        return MappingProxyType({})
    return MappingProxyType({str(fp): int(at) for fp, at in value.items() if isinstance(at, int)})


def _forced(value: object) -> Forced | None:
    if not isinstance(value, dict) or not isinstance(value.get("fp"), str):
        return None
    times = value.get("at_ms")
    known = tuple(map(_integer, times)) if isinstance(times, list) else ()
    return Forced(value["fp"], tuple(each for each in known if each is not None))


def _closed(value: object) -> Closed | None:
    # An earlier version wrote the fingerprint alone: another chance after the upgrade.
    return Closed(value, 0) if isinstance(value, str) else _part(Closed, value)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _part(kind: type[P], value: object) -> P | None:
    if not isinstance(value, dict):
        return None
    known: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]  # the callers' are dataclasses
        item = value.get(each.name)
        # Annotations are strings here. A wrong type would fail later, in the middle of a request.
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
            answered=bool(value.get("answered")),
        )
    except (KeyError, TypeError, ValueError, OverflowError):  # Unusable is a ValueError
        return None


class Newest(NamedTuple):
    """The login that counts.

    Attributes:
        login: None when there is none at all.
        source: the file that it is from.
        unpublished: the shared file lacks it; the next attempt writes it there.
    """

    login: CredentialDocument | None
    source: Literal["shared", "journal"]
    unpublished: bool = False


def newest(shared: CredentialDocument | None, journal: Journal) -> Newest:
    """Choose between the shared file's login and the journal's.

    The journal counts when the shared file holds a refresh token that we spent (it lags behind, or
    is a restored backup), or is gone (the CLI deletes it when a refresh of its own is refused).
    Anything else in the shared file is a newer login or refresh of another program, and wins. A
    login that was forgotten for all boxes does not count, although its file is still there.
    """
    received = journal.received
    if shared is not None and fingerprint(shared.refresh_token) in journal.gone:
        shared = None
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
