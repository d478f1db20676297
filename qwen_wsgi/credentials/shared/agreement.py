"""Decides which of two logins is the newest: this box's, or the one that the boxes share.

By descent, not by clocks: each side knows which refresh tokens came before its own. Clocks of
boxes differ, and a clock that was set back must not bring a spent token back. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.shared.record import Record


class Verdict(enum.Enum):
    """What is to be done."""

    #: Both are the same.
    SAME = "same"
    #: The shared one is newer: take it over.
    TAKE = "take"
    #: This box's is newer: write it to the shared place.
    GIVE = "give"
    #: The login was forgotten on purpose, on another box.
    FORGET = "forget"
    #: It was forgotten on this box, and the others do not know.
    GIVE_LOGOUT = "give_logout"
    #: There is none at all.
    NOTHING = "nothing"


def _none() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Local:
    """What this box knows of the login.

    Attributes:
        login: the one that counts here; None when there is none.
        line: fingerprints of the refresh tokens that it came from, by renewals.
        spent: of all refresh tokens that were ever spent.
        gone: of logins that were forgotten on purpose.
        agreed: fingerprint of the login that this box and the shared place agreed on last; "".
    """

    login: CredentialDocument | None
    line: tuple[str, ...] = ()
    spent: Mapping[str, int] = field(default_factory=_none)
    tombstones: Mapping[str, int] = field(default_factory=_none)
    gone: Mapping[str, int] = field(default_factory=_none)
    agreed: str = ""

    @property
    def fp(self) -> str:
        """Fingerprint of its refresh token; "" without a login."""
        return "" if self.login is None else fingerprint(self.login.refresh_token)


def decide(local: Local, shared: Record | None) -> Verdict:
    """Compare this box's login with the shared one.

    Args:
        shared: None when the shared place has never heard of the login, or forgot it.
    """
    if local.login is not None and _is_gone(local.fp, local.line, local.gone):
        local = replace(local, login=None, line=())
    if shared is None:
        if local.login is not None:
            return Verdict.GIVE
        return Verdict.GIVE_LOGOUT if local.gone else Verdict.NOTHING
    if shared.login is not None and _is_gone(shared.fp, shared.line, local.gone):
        return Verdict.GIVE if local.login is not None else Verdict.GIVE_LOGOUT
    if local.login is not None and _is_gone(local.fp, local.line, shared.gone):
        return Verdict.FORGET if shared.login is None else Verdict.TAKE
    if local.login is None or shared.login is None:
        if local.login is not None:
            return Verdict.GIVE  # a new login after a logout
        return Verdict.NOTHING if shared.login is None else Verdict.TAKE
    return _newest(local, shared)


def _is_gone(fp: str, line: tuple[str, ...], gone: Mapping[str, int]) -> bool:
    """Whether a login, or one that it came from, was forgotten on purpose."""
    return fp in gone or any(each in gone for each in line)


def _newest(local: Local, shared: Record) -> Verdict:
    mine, theirs = local.fp, shared.fp
    assert local.login is not None
    assert shared.login is not None
    if mine == theirs:
        # An endpoint that does not rotate: then the later access token counts.
        return _by_expiry(local.login, shared.login, equal=Verdict.SAME)
    if mine in shared.spent:
        return Verdict.TAKE
    if theirs in local.spent:
        return Verdict.GIVE
    agreed = local.agreed
    if agreed:
        if mine == agreed:
            return Verdict.TAKE
        if theirs == agreed:
            return Verdict.GIVE
        # Both have changed. A login of a person wins over a renewal of the one before it.
        renewed_here, renewed_there = agreed in local.line, agreed in shared.line
        if renewed_here != renewed_there:
            return Verdict.TAKE if renewed_here else Verdict.GIVE
    equal = Verdict.GIVE if mine > theirs else Verdict.TAKE
    return _by_expiry(local.login, shared.login, equal=equal)


def _by_expiry(mine: CredentialDocument, theirs: CredentialDocument, *, equal: Verdict) -> Verdict:
    if mine.expires_at_ms == theirs.expires_at_ms:
        return equal
    return Verdict.GIVE if mine.expires_at_ms > theirs.expires_at_ms else Verdict.TAKE
