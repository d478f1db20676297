"""One account's credential: what a call uses now, and what `status` says about it.

The verdict on a login is here; what follows from it (have it renewed, wait, adopt) is the
`refresher`'s. A call waits only when no valid token is at hand.
"""

from __future__ import annotations

import datetime
import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qwen_wsgi.credentials import endpoint
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
from qwen_wsgi.credentials.refresh.pace import CLOSED_WITHIN_S
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.redaction import mask

log = logging.getLogger(__name__)

#: Where a login's token is used when neither the login nor OPENAI_BASE_URL says.
DEFAULT_OAUTH_BASE_URL: Final = "https://portal.qwen.ai/v1"

#: How long a call waits for a renewal when no token is left, or the one that is left runs out.
WAIT_S: Final = 20.0

_TIER_CLOSED: Final = "the free Qwen OAuth tier ended on 2026-04-15"
_REFRESH_REMEDY: Final = (
    "It is renewed as soon as the login service answers; `qwen-proxy creds status` tells more."
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
    "Make room on the disk and do not stop this process before: it alone has the new login."
)
_GONE: Final = "is gone, and the login as it was renewed last is used"
_GONE_REMEDY: Final = (
    "The next renewal writes the file again. If it was a logout, run `qwen-proxy creds forget`."
)


@dataclass(frozen=True)
class _Verdict:
    """What an OAuth source holds at one moment.

    Attributes:
        document: None when there is none that can be used.
        base_url: where its token is used; None without a document.
        problem: what is wrong with the source, as the end of the sentence "<shown> …".
        code: the error's code when there is no document.
    """

    document: CredentialDocument | None
    base_url: str | None
    problem: str = ""
    remedy: str = ""
    code: str = "credentials_missing"


@dataclass(frozen=True)
class _Ready:
    """A token that calls may use without another thought.

    Attributes:
        sight: what it was made of; another one ends its use.
        until_s: wall clock; until then it is FRESH.
        until_boot_s: the same by the boot time, which does not step.
    """

    sight: Snapshot
    token: AccessToken
    until_s: float
    until_boot_s: float


class OAuthLogin(CredentialSource):
    """A login: the verdict on what the store has, renewed ahead of need.

    Shared by all greenlets and threads of a process; safe to use after a fork. The fast path (a
    valid token) is two `stat`s, two clocks and no lock. What raises here is the last resort: with a
    refreshable login a call waits up to WAIT_S first.
    """

    def __init__(self, store: LoginStore, refresher: Refresher, *, fallback_base_url: str) -> None:
        self.store = store
        self.refresher = refresher
        self.shown = store.shown
        self._fallback_base_url = fallback_base_url or DEFAULT_OAUTH_BASE_URL
        self._clock = refresher.clock
        self._judgement: tuple[Snapshot, _Verdict] | None = None
        self._ready: _Ready | None = None
        self._gone = False

    def __repr__(self) -> str:
        return f"OAuthLogin({self.shown})"

    def base_url(self) -> str | None:
        """Where the token is used; None without a usable document."""
        return self._look(self.store.look()).base_url

    def current(self, *, rejected: str | None = None) -> AccessToken:
        sight, ready = self.store.look(), self._ready
        if (
            ready is not None
            and ready.sight is sight
            and ready.token.value != rejected
            and self._clock.now() < ready.until_s
            and self.refresher.boottime() < ready.until_boot_s
        ):
            return ready.token
        return self._considered(sight, rejected)

    def _considered(self, sight: Snapshot, rejected: str | None) -> AccessToken:
        look = self._look(sight)
        login = self._usable(look)
        refused = rejected is not None and rejected == login.access_token
        state = self.refresher.state(sight)
        closed = self.refresher.ability(sight) is Ability.TIER_CLOSED
        if refused or closed or state is not TokenState.FRESH:
            return self._urged(sight, login, state, rejected if refused else None)
        self.refresher.note()
        token = _token(look, login)
        self._ready = _Ready(sight, token, *self.refresher.fresh_until(sight))
        return token

    def _usable(self, look: _Verdict) -> CredentialDocument:
        if look.document is None or look.base_url is None:
            message = f"The Qwen login {self.shown} {look.problem}."
            raise CredentialError(message, code=look.code, remedy=look.remedy)
        return look.document

    def _urged(
        self, sight: Snapshot, login: CredentialDocument, state: TokenState, rejected: str | None
    ) -> AccessToken:
        """The slow road: something has to be done about the token."""
        if rejected is not None and self._never_was_good(sight, login):
            self.refresher.close_tier(login)
            self._ready = None  # it may only be known to this process: the sight stays the same
            raise self._closed()
        if self.refresher.ability(sight) is Ability.TIER_CLOSED:
            raise self._closed()
        attempt = self.refresher.start(rejected=rejected)
        if attempt is not None and (rejected is not None or state is not TokenState.STALE):
            attempt.wait(WAIT_S)
        sight = self.store.look()
        look = self._look(sight)
        login = self._usable(look)
        if self.refresher.state(sight) is TokenState.EXPIRED:
            raise self._expired(sight, login)
        if rejected is not None and rejected == login.access_token:
            raise self._refused(sight)
        return _token(look, login)

    def _never_was_good(self, sight: Snapshot, login: CredentialDocument) -> bool:
        """Whether the refused token is what a refresh for that very reason has just brought."""
        received = sight.journal.received
        if received is None or not received.forced:
            return False
        if received.login.access_token != login.access_token:
            return False
        return abs(self._clock.now() - received.at_ms / 1000) < CLOSED_WITHIN_S

    def _closed(self) -> CredentialError:
        return CredentialError(
            f"The Qwen login {self.shown} is accepted by the login service and refused by the API, "
            "also with a new token: this account's tier is closed.",
            code="oauth_tier_closed",
            remedy=_CLOSED_REMEDY,
        )

    def _refused(self, sight: Snapshot) -> CredentialError:
        why, remedy = self._why(sight)
        return CredentialError(
            f"The upstream refused the access token of the Qwen login {self.shown}, and it could "
            f"not be replaced{why}.",
            code="credentials_rejected",
            remedy=remedy or _REJECTED_LOGIN_REMEDY,
        )

    def _expired(self, sight: Snapshot, login: CredentialDocument) -> CredentialError:
        why, remedy = self._why(sight)
        return CredentialError(
            f"The Qwen login {self.shown} expired on {_date(login.expires_at_ms)}, "
            f"{self._since(login)}, and was not renewed{why}.",
            code="credentials_expired",
            remedy=remedy or _REFRESH_REMEDY,
            # Without a remedy that needs a person, it may well work in a moment.
            retry_after_s=None if remedy else 10,
        )

    def _why(self, sight: Snapshot) -> tuple[str, str]:
        """Why there is no newer token, as the end of a sentence, and what a person has to do."""
        ability = self.refresher.ability(sight)
        if ability is Ability.REJECTED:
            return ": its refresh token was refused", _LOGIN_REMEDY
        if ability is Ability.READ_ONLY:
            where, why = self.store.paths.document.parent, self.refresher.read_only
            remedy = (
                f"Make room on the disk that holds {where}."
                if why in _NO_ROOM
                else f"Let the user who runs qwen-proxy write to {where} and the files in it; "
                "under systemd see docs/credentials.md."
            )
            return f": {where} cannot be written ({why})", remedy
        if ability is Ability.NO_REFRESH_TOKEN:
            return ": it has no refresh token", _LOGIN_REMEDY
        last = self.refresher.last
        return (f" ({last.detail})" if last is not None else ""), ""

    def status(self) -> CredentialStatus:
        sight = self.store.look()
        look = self._look(sight)
        login = look.document
        if login is None:
            return CredentialStatus(TokenState.MISSING, NO_SECRET, look.problem, look.remedy, None)
        state = self.refresher.state(sight)
        _, remedy = self._why(sight)
        if state is TokenState.EXPIRED:
            detail, remedy = f"expired {self._since(login)}", remedy or _REFRESH_REMEDY
        else:
            left_s = login.expires_at_ms / 1000 - self._clock.now()
            detail = f"valid for {_span(left_s)}"
        ability = self.refresher.ability(sight)
        if ability is Ability.TIER_CLOSED:
            state, detail, remedy = (
                TokenState.EXPIRED,
                "refused by the API: tier closed",
                _CLOSED_REMEDY,
            )
        elif ability is not Ability.REFRESHABLE:
            detail = f"{detail}, cannot be renewed ({ability.value})"
        if self.refresher.unsaved:
            detail = f"{detail}; not on disk yet ({self.refresher.unsaved})"
            remedy = _UNSAVED_REMEDY
        if look.problem:
            known = "" if self._gone else "this is the login as last read, now "
            detail = f"{detail}; {known}the file {look.problem}"
            remedy = remedy or look.remedy
        return CredentialStatus(
            state,
            mask(login.access_token),
            detail,
            remedy,
            login.expires_at_ms,
            ability,
            bool(self.refresher.unsaved),
        )

    def maintain(self) -> None:
        """Have the login renewed, noted, or a rescued one published, without any call asking."""
        sight = self.store.look()
        if sight.newest.login is None:
            return
        self.refresher.note()
        if sight.newest.unpublished or self.refresher.state(sight) is not TokenState.FRESH:
            self.refresher.start()

    def _look(self, sight: Snapshot) -> _Verdict:
        judgement = self._judgement
        if judgement is not None and judgement[0] is sight:
            return judgement[1]
        reading, login = sight.reading, sight.newest.login
        self._note_gone(login is not None and reading.value is None and not reading.exists)
        if self._gone:
            look = self._judged(login, _GONE, _GONE_REMEDY)
        elif login is not None or reading.problem:
            # A torn file that our journal can mend needs nobody.
            mended = login is not None and sight.newest.unpublished
            look = self._judged(login, reading.problem, "" if mended else reading.remedy)
        else:
            look = _Verdict(None, None, "does not exist", _LOGIN_REMEDY)
        self._judgement = (sight, look)
        return look

    def _note_gone(self, gone: bool) -> None:
        """Warn, once, when the file was taken away from a login that we renewed: the CLI does so
        when a refresh of its own is refused, and so does who logs out."""
        if gone and not self._gone:
            log.warning("login file is gone, its journal is used login=%s", self.shown)
        self._gone = gone

    def _judged(self, login: CredentialDocument | None, problem: str, remedy: str) -> _Verdict:
        """Leave out a document that must not, or cannot, be used."""
        if login is None:
            return _Verdict(None, None, problem, remedy)
        named = login.resource_url
        try:
            if named is not None:
                url = endpoint.from_resource_url(named)
            else:
                url = endpoint.base_url(self._fallback_base_url)
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


def _token(look: _Verdict, login: CredentialDocument) -> AccessToken:
    return AccessToken(login.access_token, look.base_url or "", login.expires_at_ms)


#: What `Refresher.read_only` says of a full disk or quota.
_NO_ROOM: Final = frozenset({os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)})

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


def _date(at_ms: int) -> str:
    try:
        at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return "a date that cannot be right"
    return f"{at:%Y-%m-%d %H:%M} UTC"
