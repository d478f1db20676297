"""A Qwen login as a credential: the token that calls use, and what `status` shows.

This file decides whether a login can be used. What follows (refresh it, wait, adopt another one) is
the refresher's. A call waits only when there is no valid token.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from qwen_wsgi import net
from qwen_wsgi.credentials.credential import (
    NO_SECRET,
    Ability,
    CredentialSource,
    CredentialStatus,
    TokenState,
    usable_secret,
)
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.login_store import LoginStore, Snapshot
from qwen_wsgi.credentials.refresh.attempt import Attempt
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.refresh.timing import CLOSED_WITHIN_S
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.redaction import mask
from qwen_wsgi.shortage import by_errno

log = logging.getLogger(__name__)

#: Where a login's token is used when neither the login nor OPENAI_BASE_URL names an endpoint.
DEFAULT_OAUTH_BASE_URL: Final = "https://portal.qwen.ai/v1"

#: How long a call waits for a refresh when the token has expired, or soon will.
WAIT_S: Final = 20.0

_TIER_CLOSED: Final = "the free Qwen OAuth tier ended on 2026-04-15"
_REFRESH_REMEDY: Final = (
    "It is renewed as soon as the login service answers; for details: `qwen-proxy creds status`."
)
_LOGIN_REMEDY: Final = f"Log in with `qwen-proxy login`, or use an API key: {_TIER_CLOSED}."
_CLOSED_REMEDY: Final = (
    f"Use an API key: {_TIER_CLOSED}. With a paid account, log in again with `qwen-proxy login`."
)
_REJECTED_LOGIN_REMEDY: Final = (
    f"If it used to be the free Qwen OAuth login: {_TIER_CLOSED}; a login still seems to succeed, "
    "but every call is refused. Use an API key; with a paid account, log in again with `qwen`."
)
_UNSAVED_REMEDY: Final = (
    "Make room on the disk, and do not stop this process before: only it has the new login."
)
_GONE: Final = "is gone, and the latest login of the journal is used"
_GONE_REMEDY: Final = (
    "The next renewal writes the file again. If it was a logout, run `qwen-proxy creds forget`."
)
_FORGOTTEN: Final = "was forgotten for all boxes, by `qwen-proxy creds forget` on one of them"


@dataclass(frozen=True)
class _Verdict:
    """Whether a snapshot's login can be used.

    Attributes:
        document: the login; None when there is none that can be used.
        base_url: where its token is used; None without a document.
        problem: what is wrong with the file, as the end of the sentence "<shown> …".
        code: the error's code when there is no document.
    """

    document: CredentialDocument | None
    base_url: str | None
    problem: str = ""
    remedy: str = ""
    code: str = "credentials_missing"


@dataclass(frozen=True)
class _FreshToken:
    """A token that calls may use without another check.

    Attributes:
        snapshot: what it was made of; a different one ends its use.
        until_s: wall clock; until then it is FRESH.
        until_boot_s: the same by the boot time, which does not step.
    """

    snapshot: Snapshot
    token: AccessToken
    until_s: float
    until_boot_s: float


class OAuthLogin(CredentialSource):
    """A login that is refreshed ahead of need.

    Shared by all greenlets and threads of a process; safe to use after a fork. The fast path (a
    valid token) is two `stat`s, two clocks and no lock. An error is the last resort: with a
    refreshable login a call waits up to WAIT_S first.
    """

    renewable = True

    def __init__(self, store: LoginStore, refresher: Refresher, *, fallback_base_url: str) -> None:
        self.store = store
        self.refresher = refresher
        self.shown = store.shown
        self._fallback_base_url = fallback_base_url or DEFAULT_OAUTH_BASE_URL
        self._clock = refresher.context.clock
        self._cached_verdict: tuple[Snapshot, _Verdict] | None = None
        self._fresh: _FreshToken | None = None
        self._answered = ""
        self._swept = False
        self._gone = False

    def __repr__(self) -> str:
        return f"OAuthLogin({self.shown})"

    def base_url(self) -> str | None:
        """Where the token is used; None without a usable document."""
        return self._verdict(self.store.snapshot()).base_url

    def current(self, *, rejected: str | None = None) -> AccessToken:
        snapshot, fresh = self.store.snapshot(), self._fresh
        if (
            fresh is not None
            and fresh.snapshot is snapshot
            and fresh.token.value != rejected
            and self._clock.now() < fresh.until_s
            and self.refresher.context.boottime() < fresh.until_boot_s
        ):
            return fresh.token
        return self._checked(snapshot, rejected)

    def answered(self, token: AccessToken) -> None:
        if token.value != self._answered:
            self._answered = token.value
            self.refresher.note_answered(token.value)

    def _checked(self, snapshot: Snapshot, rejected: str | None) -> AccessToken:
        verdict = self._verdict(snapshot)
        login = self._usable(verdict)
        refused = rejected is not None and rejected == login.access_token
        state = self.refresher.token_state(snapshot)
        if self.refresher.closed_at_ms(snapshot) is not None:
            return self._tried_again(snapshot, verdict, login, refused=refused)
        if refused or state is not TokenState.FRESH:
            return self._refreshed(snapshot, login, state, rejected if refused else None)
        self.refresher.back_up()
        token = _token(verdict, login)
        self._fresh = _FreshToken(snapshot, token, *self.refresher.fresh_until(snapshot))
        return token

    def _usable(self, verdict: _Verdict) -> CredentialDocument:
        if verdict.document is None or verdict.base_url is None:
            message = f"The Qwen login {self.shown} {verdict.problem}."
            raise CredentialError(message, code=verdict.code, remedy=verdict.remedy)
        return verdict.document

    def _refreshed(
        self,
        snapshot: Snapshot,
        login: CredentialDocument,
        state: TokenState,
        rejected: str | None,
    ) -> AccessToken:
        """Have a token that is not fresh, or was refused, refreshed; wait for it if need be."""
        if rejected is not None and self._was_never_good(snapshot, login):
            raise self._close(snapshot, login)
        progress = self.refresher.start(rejected=rejected)
        if progress is not None and (rejected is not None or state is not TokenState.STALE):
            progress.wait(WAIT_S)
        snapshot = self.store.snapshot()
        verdict = self._verdict(snapshot)
        login = self._usable(verdict)
        if self.refresher.token_state(snapshot) is TokenState.EXPIRED:
            raise self._expired(snapshot, login)
        if rejected is not None and rejected == login.access_token:
            raise self._refused(snapshot)
        return _token(verdict, login)

    def _tried_again(
        self, snapshot: Snapshot, verdict: _Verdict, login: CredentialDocument, *, refused: bool
    ) -> AccessToken:
        """The token of a closed login, for a call that tries it again: one in a minute."""
        if refused:
            raise self._close(snapshot, login)
        if self.refresher.call_tries_in_s(snapshot) > 0:
            raise self._closed(snapshot)
        self.refresher.begin_trial()
        state = self.refresher.token_state(snapshot)
        if state is TokenState.EXPIRED:
            return self._refreshed(snapshot, login, state, None)
        return _token(verdict, login)

    def _was_never_good(self, snapshot: Snapshot, login: CredentialDocument) -> bool:
        """Whether the refused token was itself fetched a moment ago because of a refusal, and no
        call was answered with it; or was closed before."""
        if self.refresher.has_answered(snapshot):
            return False
        if self.refresher.was_closed(snapshot):
            return True
        received = snapshot.journal.received
        if received is None or not received.forced:
            return False
        if received.login.access_token != login.access_token:
            return False
        return abs(self._clock.now() - received.at_ms / 1000) < CLOSED_WITHIN_S

    def _close(self, snapshot: Snapshot, login: CredentialDocument) -> CredentialError:
        """Leave the login alone for a while; the error that says so."""
        self.refresher.close_tier(login)
        self._fresh = None  # if only this process knows it, the snapshot stays the same
        return self._closed(self.store.snapshot())

    def _closed(self, snapshot: Snapshot) -> CredentialError:
        return CredentialError(
            f"The Qwen login {self.shown} is accepted by the login service and refused by the API, "
            f"also with a new token: this account's tier is closed. {self._next_trial(snapshot)}.",
            code=Ability.TIER_CLOSED.value,
            remedy=_CLOSED_REMEDY,
            retry_after_s=max(1.0, self.refresher.call_tries_in_s(snapshot)),
        )

    def _next_trial(self, snapshot: Snapshot) -> str:
        """When a closed login is tried again, as a sentence without its full stop."""
        now_s = self._clock.now()
        call_s = self.refresher.call_tries_in_s(snapshot)
        trial_s = max(call_s, self.refresher.trial_in_s(snapshot))
        if call_s <= 0:
            return "The next call tries it again"
        return (
            f"It is tried again by a call from {_time(now_s + call_s)} on, and without one at "
            f"{_time(now_s + trial_s)}"
        )

    def _refused(self, snapshot: Snapshot) -> CredentialError:
        again_s = self.refresher.forced_in_s(snapshot)
        if again_s > 0:
            return CredentialError(
                f"The upstream refused the access token of the Qwen login {self.shown}, which was "
                "renewed for that reason a moment ago; it is renewed again from "
                f"{_time(self._clock.now() + again_s)} on.",
                code="credentials_rejected",
                remedy=_REJECTED_LOGIN_REMEDY,
                retry_after_s=again_s,
            )
        why, remedy = self._why_not_refreshed(snapshot)
        return CredentialError(
            f"The upstream refused the access token of the Qwen login {self.shown}, and it could "
            f"not be replaced{why}.",
            code="credentials_rejected",
            remedy=remedy or _REJECTED_LOGIN_REMEDY,
        )

    def _expired(self, snapshot: Snapshot, login: CredentialDocument) -> CredentialError:
        why, remedy = self._why_not_refreshed(snapshot)
        return CredentialError(
            f"The Qwen login {self.shown} expired on {_date(login.expires_at_ms)}, "
            f"{self._since(login)}, and was not renewed{why}.",
            code="credentials_expired",
            remedy=remedy or _REFRESH_REMEDY,
            # Without a remedy that needs a person, it may well work in a moment.
            retry_after_s=None if remedy else 10,
        )

    def _why_not_refreshed(self, snapshot: Snapshot) -> tuple[str, str]:
        """Why there is no newer token, as the end of a sentence, and what a person has to do."""
        ability = self.refresher.ability(snapshot)
        if ability is Ability.REJECTED:
            return ": its refresh token was refused", _LOGIN_REMEDY
        if ability is Ability.READ_ONLY and (problem := self.refresher.read_only) is not None:
            where = self.store.paths.document.parent
            if problem.is_disk_full:
                remedy = f"Make room on the disk that holds {where}."
            elif (shortage := by_errno(problem.errno)) is not None:
                remedy = shortage.remedy
            else:
                remedy = (
                    f"Let the user who runs qwen-proxy write to {where} and the files in it; "
                    "under systemd see docs/credentials.md."
                )
            return f": {where} cannot be written ({problem.text})", remedy
        if ability is Ability.NO_REFRESH_TOKEN:
            return ": it has no refresh token", _LOGIN_REMEDY
        last = self.refresher.last
        return (f" ({last.detail})" if last is not None else ""), ""

    def renew(self) -> Attempt:
        """Refresh now, even if it is early, because an admin wants it. Pauses still count.

        In a thread: once a token was sent, its answer must be saved, even if the client leaves.
        """
        held = self.store.snapshot().newest.login
        rejected = None if held is None else held.access_token
        made: list[Attempt] = []
        thread = threading.Thread(
            target=lambda: made.append(self.refresher.attempt(rejected=rejected))
        )
        thread.start()
        thread.join()
        return made[0]

    def status(self) -> CredentialStatus:
        found, shared = self._status(), self.refresher.context.shared
        if shared is None:
            return found
        detail = f"{found.detail}; shared: {shared.describe()}"
        return replace(found, detail=detail, sharing=shared.state)

    def _status(self) -> CredentialStatus:
        snapshot = self.store.snapshot()
        verdict = self._verdict(snapshot)
        login = verdict.document
        if login is None:
            return CredentialStatus(
                TokenState.MISSING,
                NO_SECRET,
                verdict.problem,
                verdict.remedy,
                None,
                cause=verdict.code,
            )
        state = self.refresher.token_state(snapshot)
        _, remedy = self._why_not_refreshed(snapshot)
        if state is TokenState.EXPIRED:
            detail, remedy = f"expired {self._since(login)}", remedy or _REFRESH_REMEDY
        else:
            left_s = login.expires_at_ms / 1000 - self._clock.now()
            detail = f"valid for {_span(left_s)}"
        ability = self.refresher.ability(snapshot)
        cause, again_s = "", None
        if state is TokenState.EXPIRED:
            cause = "credentials_expired" if ability is Ability.REFRESHABLE else ability.value
        if ability is Ability.TIER_CLOSED:
            cause, again_s = ability.value, self.refresher.call_tries_in_s(snapshot)
            next_trial = self._next_trial(snapshot)
            state, detail, remedy = (
                TokenState.EXPIRED,
                f"refused by the API: tier closed. {next_trial}",
                _CLOSED_REMEDY,
            )
        elif ability is not Ability.REFRESHABLE:
            detail = f"{detail}, cannot be renewed ({ability.value})"
        if self.refresher.unsaved:
            detail = f"{detail}; not on disk yet ({self.refresher.unsaved})"
            remedy = _UNSAVED_REMEDY
        if verdict.problem:
            known = "" if self._gone else "this is the login as last read, now "
            detail = f"{detail}; {known}the file {verdict.problem}"
            remedy = remedy or verdict.remedy
        return CredentialStatus(
            state,
            mask(login.access_token),
            detail,
            remedy,
            login.expires_at_ms,
            ability,
            bool(self.refresher.unsaved),
            cause,
            again_s,
        )

    @property
    def trial_is_due(self) -> bool:
        """Whether a closed login is to be tried again, without a call."""
        snapshot = self.store.snapshot()
        closed = self.refresher.closed_at_ms(snapshot) is not None
        return closed and self.refresher.trial_in_s(snapshot) <= 0

    def give_another_chance(self) -> None:
        """The API did not refuse a closed login's token just now: the next call tries it."""
        login = self.store.snapshot().newest.login
        if login is not None:
            self.refresher.give_another_chance(login)

    def maintain(self) -> None:
        """Refresh the login, back it up, or publish it from the journal, if that is due; for idle
        processes, which make no calls."""
        if not self._swept:
            self._swept = True
            self.refresher.sweep()
        shared = self.refresher.context.shared
        if shared is not None:
            shared.sync()
        snapshot = self.store.snapshot()
        if (login := snapshot.newest.login) is None:
            return
        self.refresher.back_up()
        stale = self.refresher.token_state(snapshot) is not TokenState.FRESH
        if snapshot.newest.unpublished or stale:
            self.refresher.start()
        elif shared is not None and shared.may_try() and shared.wanted(login.access_token):
            # The API refuses it on another box.
            self.refresher.start(rejected=login.access_token)

    def _verdict(self, snapshot: Snapshot) -> _Verdict:
        cached = self._cached_verdict
        if cached is not None and cached[0] is snapshot:
            return cached[1]
        reading, login = snapshot.reading, snapshot.newest.login
        self._set_gone(login is not None and reading.value is None and not reading.exists)
        if self._gone:
            verdict = self._verdict_on(login, _GONE, _GONE_REMEDY)
        elif login is not None or reading.problem:
            # A torn file that our journal can repair needs no person.
            repaired = login is not None and snapshot.newest.unpublished
            verdict = self._verdict_on(login, reading.problem, "" if repaired else reading.remedy)
        elif reading.exists and reading.value is not None:
            verdict = _Verdict(None, None, _FORGOTTEN, _LOGIN_REMEDY)
        else:
            verdict = _Verdict(None, None, "does not exist", _LOGIN_REMEDY)
        self._cached_verdict = (snapshot, verdict)
        return verdict

    def _set_gone(self, gone: bool) -> None:
        """Warn, once, when the file of a login that we refreshed is deleted: by a CLI whose own
        refresh was refused, or by a logout."""
        if gone and not self._gone:
            log.warning("login file is gone, its journal is used login=%s", self.shown)
        self._gone = gone

    def _verdict_on(self, login: CredentialDocument | None, problem: str, remedy: str) -> _Verdict:
        """Refuse a document whose endpoint or token cannot be used."""
        if login is None:
            return _Verdict(None, None, problem, remedy)
        named = login.resource_url
        try:
            if named is not None:
                url = net.from_resource_url(named)
            else:
                url = net.base_url(self._fallback_base_url)
        except ValueError as error:
            what = "has a resource_url" if named is not None else "relies on an OPENAI_BASE_URL"
            fault = f"{what} that is refused: {error}"
            return _Verdict(None, None, fault, _LOGIN_REMEDY, "credentials_invalid")
        if not usable_secret(login.access_token):
            fault = "has an access_token with characters that no HTTP header can carry"
            return _Verdict(None, None, fault, _LOGIN_REMEDY, "credentials_invalid")
        return _Verdict(login, url, problem, remedy)

    def _since(self, login: CredentialDocument) -> str:
        ago_s = self._clock.now() - login.expires_at_ms / 1000
        if ago_s < 0:
            return "by a clock that does not step (this machine's was set back)"
        return f"{_span(ago_s)} ago"


def _token(verdict: _Verdict, login: CredentialDocument) -> AccessToken:
    return AccessToken(login.access_token, verdict.base_url or "", login.expires_at_ms)


#: Seconds per unit, and the units that are named below it.
_SPANS: Final[tuple[tuple[int, Callable[[int], str]], ...]] = (
    (2 * 86_400, lambda s: f"{s // 86_400} days"),
    (3_600, lambda s: f"{s // 3_600} h {s % 3_600 // 60} min"),
    (60, lambda s: f"{s // 60} min"),
)


def _span(seconds: float) -> str:
    """A duration for people: `2 days`, `3 h 12 min`, `5 min`, `40 s`."""
    whole = int(seconds)
    for least, text in _SPANS:
        if whole >= least:
            return text(whole)
    return f"{whole} s"


def _time(at_s: float) -> str:
    """A moment of today or tomorrow for people: `12:05:10 UTC`."""
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%H:%M:%S} UTC"


def _date(at_ms: int) -> str:
    try:
        at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return "a date that cannot be right"
    return f"{at:%Y-%m-%d %H:%M} UTC"
