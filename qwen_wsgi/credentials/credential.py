"""An account's credential: the token that a call uses now, and the status that a person sees."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from qwen_wsgi import net
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.redaction import DISCOVERED, mask

#: Shown in place of a secret that is not there.
NO_SECRET: Final = "–"

_REJECTED_KEY_REMEDY: Final = (
    "Check that the key is still valid and belongs to this very endpoint: a key works with the "
    "host of its own plan and region only."
)


class TokenState(enum.Enum):
    """How long a token is still good for; see docs/credentials.md.

    The last three are of an account: what its upstream said of the credential, or of the calls.
    """

    FRESH = "fresh"
    STALE = "stale"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    MISSING = "missing"
    REFUSED = "refused"
    UNPAID = "unpaid"
    #: It gets no calls, for longer than a call waits.
    PAUSED = "paused"

    @property
    def is_usable(self) -> bool:
        """Whether calls can be made with the token."""
        return self in (TokenState.FRESH, TokenState.STALE, TokenState.EXPIRING)


class Ability(enum.Enum):
    """Whether a login can be refreshed, beside how long its token is good for."""

    REFRESHABLE = "refreshable"
    NO_REFRESH_TOKEN = "no_refresh_token"
    READ_ONLY = "read_only"
    REJECTED = "rejected"
    #: A refresh succeeded, and the API refused its token all the same.
    TIER_CLOSED = "oauth_tier_closed"


class PausedModel(NamedTuple):
    """A model that an account is not asked for now: for how long, and why (a stable word)."""

    model: str
    seconds: float
    cause: str


@dataclass(frozen=True)
class CredentialStatus:
    """A credential as a person sees it; with what is known of its account, see
    `upstream.routing.account_status`.

    Attributes:
        shown: the masked secret, or NO_SECRET.
        detail: one sentence, e.g. `valid for 3 h 12 min`.
        remedy: empty when nothing is wrong.
        expires_at_ms: wall clock; None for a credential that does not expire.
        ability: whether a login can be refreshed; None for other credentials.
        unsaved: the latest login is in this process's memory alone.
        cause: why it is not usable, or gets no calls for a while: a stable word.
        again_s: in how many seconds calls go to the account again; None if that is not known.
        models: models of the account that get no calls now.
        sharing: how a login is shared with other boxes, a stable word: `in_step`, `redis_away` or
            `not_in_step`; "" if it is not.
    """

    state: TokenState
    shown: str
    detail: str
    remedy: str
    expires_at_ms: int | None
    ability: Ability | None = None
    unsaved: bool = False
    cause: str = ""
    again_s: float | None = None
    models: tuple[PausedModel, ...] = ()
    sharing: str = ""


class CredentialSource(Protocol):
    """One account's credential, shared by all calls of a process."""

    @property
    def renewable(self) -> bool:
        """Whether a refused token can be replaced by a new one, without a person's help."""

    def current(self, *, rejected: str | None = None) -> AccessToken:
        """Return the token to use now.

        Args:
            rejected: the token that the upstream has just refused. It is evidence, not an order:
                when the credential has changed since then, the new token is returned.

        Raises:
            CredentialError: with code `credentials_missing`, `credentials_expired`,
                `credentials_rejected` or `credentials_invalid`, and the remedy.
        """

    def answered(self, token: AccessToken) -> None:
        """Note that the upstream accepted a token that was got from here; only for a renewable
        credential."""

    def status(self) -> CredentialStatus:
        """Describe the credential; never raises, and shows no secret."""


def usable_secret(value: str) -> bool:
    """Whether an HTTP header can carry it; if not, the HTTP client's error would quote it."""
    return value.isascii() and value.isprintable() and " " not in value


@dataclass(frozen=True, repr=False)
class StaticKey(CredentialSource):
    """An API key. Immutable, so it is safe anywhere; a changed key is a new source.

    Attributes:
        key: None when it is missing, empty when the server needs none.
        base_url: where it may be sent.
        fault: why it is missing, as a sentence without its full stop.
        remedy: what to do when it is missing.
    """

    key: str | None
    base_url: str
    fault: str = ""
    remedy: str = ""
    _token: AccessToken = field(init=False, compare=False)

    renewable = False

    def __post_init__(self) -> None:
        DISCOVERED.add(self.key)
        #: What each call gets.
        object.__setattr__(self, "_token", AccessToken(self.key or "", self.base_url, None))

    def answered(self, token: AccessToken) -> None:
        """A key is never in doubt."""

    def __repr__(self) -> str:
        return f"StaticKey({self._shown()}, {self.base_url})"

    def current(self, *, rejected: str | None = None) -> AccessToken:
        if self.key is None:
            raise CredentialError(f"{self.fault}.", code="credentials_missing", remedy=self.remedy)
        if rejected is not None and rejected == self.key:
            raise CredentialError(
                f"{net.host_of(self.base_url)} refused the API key {self._shown()}.",
                code="credentials_rejected",
                remedy=_REJECTED_KEY_REMEDY,
            )
        return self._token

    def status(self) -> CredentialStatus:
        if self.key is None:
            return CredentialStatus(
                TokenState.MISSING,
                NO_SECRET,
                self.fault,
                self.remedy,
                None,
                cause="credentials_missing",
            )
        detail = "API key is set" if self.key else "no key; requests are sent without one"
        return CredentialStatus(TokenState.FRESH, self._shown(), detail, "", None)

    def _shown(self) -> str:
        return mask(self.key) if self.key else NO_SECRET
