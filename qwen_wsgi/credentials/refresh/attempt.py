"""One attempt to renew a login: what it carries along, and how it ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import Snapshot


class Outcome(enum.Enum):
    """How an attempt ended; the names are those of the counters."""

    OK = "ok"
    #: Somebody else's login or refresh is in use now.
    ADOPTED = "adopted"
    #: Nothing left this machine.
    NOT_SENT = "not_sent"
    #: It may have been carried out, and its answer is lost.
    AMBIGUOUS = "ambiguous"
    #: The endpoint refused the refresh token.
    REJECTED = "rejected"
    THROTTLED = "throttled"
    #: Something on the way refused the request.
    REFUSED = "refused"
    LOCK_TIMEOUT = "lock_timeout"
    #: The file cannot be replaced, so the token was not spent.
    READ_ONLY = "read_only"
    #: It is not time for an attempt, or nothing to refresh with.
    NOT_DUE = "not_due"
    #: A fault of ours.
    FAILED = "failed"


@dataclass(frozen=True)
class Attempt:
    """The latest attempt of this process. `detail` is a clause for people."""

    outcome: Outcome
    detail: str
    at_ms: int


class Step:
    """What one transaction carries along."""

    def __init__(
        self,
        number: str,
        rejected: str | None,
        snapshot: Snapshot,
        login: CredentialDocument,
        shared: durable.Reservation,
        ours: durable.Reservation,
    ) -> None:
        self.number = number
        self.forced = rejected is not None and rejected == login.access_token
        self.snapshot = snapshot
        self.login = login
        self.shared = shared
        self.ours = ours
        self.fp = fingerprint(login.refresh_token)
        self.sent = False
        #: As it was under our lock, without a login that somebody else's has superseded: it must
        #: not come back when that one is deleted some day.
        self.journal = snapshot.journal
        received = snapshot.journal.received
        if (
            snapshot.newest.source == "shared"
            and received is not None
            and fingerprint(received.login.refresh_token) != self.fp
        ):
            self.journal = replace(self.journal, received=None)
        intent = snapshot.journal.intent
        #: An earlier sending of the same token, whose answer nobody wrote down.
        self.earlier = intent if intent is not None and intent.fp == self.fp else None
