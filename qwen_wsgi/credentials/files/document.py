"""Parses `oauth_creds.json`, the file in which qwen-code keeps its login.

    {"access_token": str, "token_type": str, "refresh_token": str, "resource_url": str,
     "expiry_date": milliseconds since the epoch}

Written by qwen-code's token manager and by its device login; `resource_url` may be absent and
unknown keys may be present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.credentials.files import jsonc
from qwen_wsgi.credentials.files.watched import FileIdentity as FileIdentity
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.redaction import DISCOVERED, mask

#: The latest date that JavaScript can represent; a later one in a file becomes this. Milliseconds.
MAX_DATE_MS: Final = 8_640_000_000_000_000

_REMEDY: Final = "Run `qwen` and log in again, or use an API key."
_TOKENS: Final = ("access_token", "refresh_token", "token_type")
_ENDPOINT: Final = "resource_url"
#: What belongs to one version of a login; all else in the file is other programs'.
_OWN: Final = (*_TOKENS, "expiry_date", _ENDPOINT)


#: How the problem text of a torn file begins.
NOT_JSON: Final = "is not JSON"


@dataclass(frozen=True, repr=False)
class CredentialDocument:
    """One version of a login.

    Attributes:
        resource_url: where the access token is to be used, as the file has it; None when absent.
        expires_at_ms: wall clock; the file's `expiry_date`.
        raw: the whole object with its unknown keys, so that a writer can keep them.
        identity: of the file that it was read from; None when it was not read from a file.
    """

    access_token: str
    refresh_token: str
    token_type: str
    resource_url: str | None
    expires_at_ms: int
    raw: Mapping[str, Any]
    identity: FileIdentity | None

    def __post_init__(self) -> None:
        DISCOVERED.add(self.access_token, self.refresh_token)

    def __repr__(self) -> str:
        return (
            f"CredentialDocument(access_token={mask(self.access_token)!r}, "
            f"resource_url={self.resource_url!r}, expires_at_ms={self.expires_at_ms})"
        )


def parse(content: bytes, identity: FileIdentity | None) -> CredentialDocument:
    """Read a document by the rules of qwen-code's own reader.

    The three tokens must be non-empty strings and `expiry_date` a number that is not zero;
    everything else is tolerated.

    Raises:
        Unusable: qwen-code, too, would treat it as "not logged in". Quotes nothing of the content.
    """
    try:
        raw = jsonc.loads(content.decode("utf-8-sig"), comments=False)
    except UnicodeDecodeError:
        raise Unusable("is not UTF-8 text", remedy=_REMEDY) from None
    except ValueError as error:
        raise Unusable(f"{NOT_JSON} ({error})", remedy=_REMEDY) from None
    if not isinstance(raw, dict):
        raise Unusable("is not a JSON object", remedy=_REMEDY)
    for name in _TOKENS:
        if not isinstance(raw.get(name), str) or not raw[name]:
            raise Unusable(f"has no {name} (a non-empty string)", remedy=_REMEDY)
    url = raw.get("resource_url")
    return CredentialDocument(
        raw["access_token"],
        raw["refresh_token"],
        raw["token_type"],
        url if isinstance(url, str) and url.strip() else None,
        _expiry(raw.get("expiry_date")),
        MappingProxyType(raw),
        identity,
    )


def with_tokens_of(
    login: CredentialDocument, there: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> CredentialDocument:
    """A login as a file is to have it that other programs may have changed meanwhile.

    What they wrote stays; what is the login's own (the tokens, their end and their endpoint) is
    taken from `login`.

    Args:
        there: what the file has now.
        before: what it had when the renewal began. Where the renewal brought no other endpoint, one
            that was written meanwhile stays.
    """
    own = {name: login.raw[name] for name in _OWN if name in login.raw}
    if before is not None and own.get(_ENDPOINT) == before.get(_ENDPOINT) and _ENDPOINT in there:
        own.pop(_ENDPOINT, None)
    raw = {**there, **own}
    url = raw.get(_ENDPOINT)
    return replace(
        login,
        resource_url=url if isinstance(url, str) and url.strip() else None,
        raw=MappingProxyType(raw),
    )


def _expiry(value: object) -> int:
    # bool is an int in Python, but not a number in JavaScript.
    if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
        remedy = f"It must be milliseconds since 1970. {_REMEDY}"
        raise Unusable("has no expiry_date (a number that is not zero)", remedy=remedy)
    return int(max(-MAX_DATE_MS, min(value, MAX_DATE_MS)))
