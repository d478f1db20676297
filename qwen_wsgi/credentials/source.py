"""One account's credential: what a call uses now, and what `status` says about it.

Reading only. Refreshing will sit between an OAuth source's document and its verdict: the verdict
stays here, and what follows from it (wait, refresh, adopt) replaces the error that is raised today.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import document, endpoint, policy
from qwen_wsgi.credentials.document import CredentialDocument
from qwen_wsgi.credentials.files import Reading, Unusable, WatchedFile
from qwen_wsgi.credentials.policy import State
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.settings import mask

#: Where a login's token is used when neither the login nor OPENAI_BASE_URL says.
DEFAULT_OAUTH_BASE_URL: Final = "https://portal.qwen.ai/v1"

#: Shown in place of a secret that is not there.
NO_SECRET: Final = "–"

_TIER_CLOSED: Final = "the free Qwen OAuth tier ended on 2026-04-15"
_REFRESH_REMEDY: Final = (
    f"Run `qwen` (the CLI) once, so that it refreshes the login, or use an API key: {_TIER_CLOSED}."
)
_LOGIN_REMEDY: Final = f"Log in with `qwen` (the CLI), or use an API key: {_TIER_CLOSED}."
_REJECTED_LOGIN_REMEDY: Final = (
    f"If it used to be the free Qwen OAuth login: {_TIER_CLOSED}; a login still seems to succeed, "
    "but every call is refused. Use an API key; with a paid account, log in again with `qwen`."
)
_REJECTED_KEY_REMEDY: Final = (
    "Check that the key is still valid and belongs to this very endpoint: a key works with the "
    "host of its own plan and region only."
)


@dataclass(frozen=True)
class CredentialStatus:
    """A credential as a person sees it.

    Attributes:
        shown: the masked secret, or NO_SECRET.
        detail: one sentence, e.g. `valid for 3 h 12 min`.
        remedy: empty when nothing is wrong.
        expires_at_ms: wall clock; None for what does not expire.
    """

    state: State
    shown: str
    detail: str
    remedy: str
    expires_at_ms: int | None


class CredentialSource(Protocol):
    """One account's credential, shared by all calls of a process."""

    def current(self, *, rejected: str | None = None) -> AccessToken:
        """The token to use now.

        Args:
            rejected: the token that the upstream has just refused. It is evidence, not an order:
                when the credential has changed since then, the new token is returned.

        Raises:
            CredentialError: with code `credentials_missing`, `credentials_expired`,
                `credentials_rejected` or `credentials_invalid`, and the remedy.
        """

    def status(self) -> CredentialStatus:
        """Never raises, and shows no secret."""


def usable_secret(value: str) -> bool:
    """Whether an HTTP header can carry it; if not, the HTTP client's error would quote it."""
    return value.isascii() and value.isprintable() and " " not in value


@dataclass(frozen=True, repr=False)
class StaticKey(CredentialSource):
    """An API key. Immutable, so it is safe anywhere; a changed key is a new source.

    Attributes:
        key: None when it is missing, empty when the server asks for none.
        base_url: where it may be sent.
        fault: why it is missing, as a sentence without its full stop.
        remedy: what to do when it is missing.
    """

    key: str | None
    base_url: str
    fault: str = ""
    remedy: str = ""

    def __repr__(self) -> str:
        return f"StaticKey({self._shown()}, {self.base_url})"

    def current(self, *, rejected: str | None = None) -> AccessToken:
        if self.key is None:
            raise CredentialError(f"{self.fault}.", code="credentials_missing", remedy=self.remedy)
        if rejected is not None and rejected == self.key:
            raise CredentialError(
                f"{endpoint.host_of(self.base_url)} refused the API key {self._shown()}.",
                code="credentials_rejected",
                remedy=_REJECTED_KEY_REMEDY,
            )
        return AccessToken(self.key, self.base_url, None)

    def status(self) -> CredentialStatus:
        if self.key is None:
            return CredentialStatus(State.MISSING, NO_SECRET, self.fault, self.remedy, None)
        detail = "API key is set" if self.key else "no key, the server is asked without one"
        return CredentialStatus(State.FRESH, self._shown(), detail, "", None)

    def _shown(self) -> str:
        return mask(self.key) if self.key else NO_SECRET


@dataclass(frozen=True)
class _Look:
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


class _OAuthSource(CredentialSource):
    """A login: the verdict on a document, wherever it comes from."""

    def __init__(self, shown: str, fallback_base_url: str, clock: Clock) -> None:
        self.shown = shown
        self._fallback_base_url = fallback_base_url or DEFAULT_OAUTH_BASE_URL
        self._clock = clock

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown})"

    @abstractmethod
    def _look(self) -> _Look:
        """What there is now."""

    def base_url(self) -> str | None:
        """Where the token is used; None without a usable document."""
        return self._look().base_url

    def current(self, *, rejected: str | None = None) -> AccessToken:
        look = self._look()
        login = look.document
        if login is None or look.base_url is None:
            message = f"The Qwen login {self.shown} {look.problem}."
            raise CredentialError(message, code=look.code, remedy=look.remedy)
        if self._state(login) is State.EXPIRED:
            raise CredentialError(
                f"The Qwen login {self.shown} expired on {_date(login.expires_at_ms)}, "
                f"{self._ago(login)}.",
                code="credentials_expired",
                remedy=_REFRESH_REMEDY,
            )
        if rejected is not None and rejected == login.access_token:
            raise CredentialError(
                f"The upstream refused the access token of the Qwen login {self.shown}, although "
                "it has not expired.",
                code="credentials_rejected",
                remedy=_REJECTED_LOGIN_REMEDY,
            )
        return AccessToken(login.access_token, look.base_url, login.expires_at_ms)

    def status(self) -> CredentialStatus:
        look = self._look()
        login = look.document
        if login is None:
            return CredentialStatus(State.MISSING, NO_SECRET, look.problem, look.remedy, None)
        state = self._state(login)
        if state is State.EXPIRED:
            detail, remedy = f"expired {self._ago(login)}", _REFRESH_REMEDY
        else:
            left_s = login.expires_at_ms / 1000 - self._clock.now()
            detail, remedy = f"valid for {_span(left_s)}", ""
        if look.problem:
            detail = f"{detail}; this is the login as last read, now the file {look.problem}"
            remedy = remedy or look.remedy
        return CredentialStatus(
            state, mask(login.access_token), detail, remedy, login.expires_at_ms
        )

    def _judged(self, login: CredentialDocument | None, problem: str, remedy: str) -> _Look:
        """Leave out a document that must not, or cannot, be used."""
        if login is None:
            return _Look(None, None, problem, remedy)
        named = login.resource_url
        try:
            if named is not None:
                url = endpoint.from_resource_url(named)
            else:
                url = endpoint.base_url(self._fallback_base_url)
        except ValueError as error:
            what = "has a resource_url" if named is not None else "relies on an OPENAI_BASE_URL"
            fault = f"{what} that is refused: {error}"
            return _Look(None, None, fault, _LOGIN_REMEDY, "credentials_invalid")
        if not usable_secret(login.access_token):
            fault = "has an access_token with characters that no HTTP header can carry"
            return _Look(None, None, fault, _LOGIN_REMEDY, "credentials_invalid")
        return _Look(login, url, problem, remedy)

    def _state(self, login: CredentialDocument) -> State:
        # The lifetime is unknown: the file has the date of expiry, not that of issue.
        return policy.state(login.expires_at_ms, None, self._clock.now())

    def _ago(self, login: CredentialDocument) -> str:
        return f"{_span(self._clock.now() - login.expires_at_ms / 1000)} ago"


class OAuthFile(_OAuthSource):
    """qwen-code's `oauth_creds.json`, looked at on every call and read when it changed.

    While the file cannot be used the login that was last read from it stays in use, because
    somebody may just be writing; a deleted file is a logout. State and safety are those of
    `WatchedFile`: one immutable value, replaced in one step.
    """

    def __init__(self, path: Path, *, shown: str, fallback_base_url: str, clock: Clock) -> None:
        super().__init__(shown, fallback_base_url, clock)
        self.file: WatchedFile[CredentialDocument] = WatchedFile(path, document.parse, clock, shown)

        self._judgement: tuple[Reading[CredentialDocument], _Look] | None = None

    def _look(self) -> _Look:
        reading = self.file.read()
        judgement = self._judgement
        if judgement is not None and judgement[0] is reading:
            return judgement[1]
        if reading.exists:
            look = self._judged(reading.value, reading.problem, reading.remedy)
        else:
            look = _Look(None, None, "does not exist", _LOGIN_REMEDY)
        self._judgement = (reading, look)
        return look


class OAuthEnvironment(_OAuthSource):
    """The login in `QWEN_CLI_AUTH`: the same JSON as in the file. Never changes, so always safe."""

    def __init__(self, text: str, *, fallback_base_url: str, clock: Clock) -> None:
        super().__init__("in QWEN_CLI_AUTH", fallback_base_url, clock)
        #: Why the value is no login, as the end of "QWEN_CLI_AUTH …"; empty when it is one.
        self.problem = ""
        login = None
        try:
            login = document.parse(text.encode(errors="replace"), None)
        except Unusable as error:
            self.problem = str(error)
        remedy = "Set QWEN_CLI_AUTH to the whole content of an oauth_creds.json."
        self._found = self._judged(login, self.problem, remedy if self.problem else "")

    def _look(self) -> _Look:
        return self._found


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
