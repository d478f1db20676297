"""The content of a login's record, as JSON. It holds tokens: it is sealed before it leaves us.

    {"format": 1, "document": {…}|null, "at_ms", "lifetime_ms", "forced", "by": "<box>",
     "line": [fp, …], "spent": {fp: at_ms}, "tombstones": {fp: at_ms}, "gone": {fp: at_ms}}

`document` is null after a logout. `line` are the refresh tokens that this login came from, the
latest last; `spent` all that were ever spent, `tombstones` those that the login service refused,
`gone` those whose login a person has forgotten on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.credentials.files import document
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint, latest
from qwen_wsgi.credentials.files.watched import Unusable

FORMAT: Final = 1
#: As many as a journal keeps of each.
_MOST: Final = 128

Times = Mapping[str, int]


def _none() -> Times:
    return MappingProxyType({})


@dataclass(frozen=True)
class Record:
    """One version of a shared login; see the module.

    Attributes:
        login: None after a logout.
        at_ms: when it was fetched, or first seen, by the clock of that box.
        lifetime_ms: of its access token; None if no qwen-proxy fetched it.
        forced: it was fetched because the API refused the access token before it.
        by: the box that wrote it.
    """

    login: CredentialDocument | None = None
    at_ms: int = 0
    lifetime_ms: int | None = None
    forced: bool = False
    by: str = ""
    line: tuple[str, ...] = ()
    spent: Times = field(default_factory=_none)
    tombstones: Times = field(default_factory=_none)
    gone: Times = field(default_factory=_none)

    @property
    def fp(self) -> str:
        """Fingerprint of its refresh token; "" without a login."""
        return "" if self.login is None else fingerprint(self.login.refresh_token)


def render(record: Record) -> bytes:
    """Render a record."""
    value: dict[str, Any] = {
        "format": FORMAT,
        "document": None if record.login is None else dict(record.login.raw),
        "at_ms": record.at_ms,
        "lifetime_ms": record.lifetime_ms,
        "forced": record.forced,
        "by": record.by,
        "line": list(record.line[-_MOST:]),
        "spent": dict(latest(record.spent, _MOST)),
        "tombstones": dict(latest(record.tombstones, _MOST)),
        "gone": dict(latest(record.gone, _MOST)),
    }
    return json.dumps(value).encode()


def parse(content: bytes) -> Record:
    """Read a record.

    Raises:
        Unusable: it is not one that we understand; a newer qwen-proxy may have written it.
    """
    remedy = "Let all boxes run the same version of qwen-proxy."
    try:
        value = json.loads(content)
        if value["format"] != FORMAT:
            raise Unusable("has another format", remedy=remedy)
        raw = value["document"]
        login = None if raw is None else document.parse(json.dumps(raw).encode(), None)
        lifetime = value["lifetime_ms"]
        return Record(
            login,
            int(value["at_ms"]),
            None if lifetime is None else int(lifetime),
            bool(value["forced"]),
            str(value["by"]),
            tuple(map(str, value["line"])),
            _times(value["spent"]),
            _times(value["tombstones"]),
            _times(value["gone"]),
        )
    except Unusable:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise Unusable("is damaged", remedy=remedy) from None


def _times(value: Mapping[str, object]) -> Times:
    return MappingProxyType({str(fp): int(str(at)) for fp, at in value.items()})
