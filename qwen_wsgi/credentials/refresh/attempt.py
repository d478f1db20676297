"""One attempt to refresh a login: its data, and how it ends."""

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
    #: A login or refresh of another program is in use now.
    ADOPTED = "adopted"
    #: No request left this machine.
    NOT_SENT = "not_sent"
    #: The request may have been carried out, and its answer is lost.
    AMBIGUOUS = "ambiguous"
    #: The endpoint refused the refresh token.
    REJECTED = "rejected"
    THROTTLED = "throttled"
    #: A firewall or gateway refused the request.
    REFUSED = "refused"
    LOCK_TIMEOUT = "lock_timeout"
    #: The file cannot be replaced, so the token was not spent.
    READ_ONLY = "read_only"
    #: No attempt is due yet, or there is no refresh token.
    NOT_DUE = "not_due"
    #: Another box renews it, or none may.
    LEFT = "left_to_another_box"
    #: An error in this program.
    FAILED = "failed"


@dataclass(frozen=True)
class Attempt:
    """The latest attempt of this process. `detail` is a clause for people."""

    outcome: Outcome
    detail: str
    at_ms: int


class Step:
    """The data of one transaction.

    Args:
        id: stands in every log line of the attempt.
        rejected: the access token that the API refused.
        snapshot: what was on disk under both locks.
        shared: reserved room for the next version of qwen-code's file.
        ours: reserved room for the next version of our journal.
    """

    def __init__(
        self,
        id: str,
        rejected: str | None,
        snapshot: Snapshot,
        login: CredentialDocument,
        shared: durable.Reservation,
        ours: durable.Reservation,
    ) -> None:
        self.id = id
        self.forced = rejected is not None and rejected == login.access_token
        self.snapshot = snapshot
        self.login = login
        self.shared = shared
        self.ours = ours
        self.fp = fingerprint(login.refresh_token)
        self.sent = False
        #: As it was under our lock, but without a login that another program's has superseded: it
        #: must not come back when that one is deleted later.
        self.journal = snapshot.journal
        received = snapshot.journal.received
        if (
            snapshot.newest.source == "shared"
            and received is not None
            and fingerprint(received.login.refresh_token) != self.fp
        ):
            self.journal = replace(self.journal, received=None, line=())
        intent = snapshot.journal.intent
        #: An earlier request with the same token whose answer was never recorded.
        self.earlier = intent if intent is not None and intent.fp == self.fp else None
