"""A client key of the database: its limits, its JSON, and how what people write becomes one. Pure.

The key itself is told once, when it is made. What is kept is its SHA-256: with 192 random bits
nobody finds a key to a digest, so that a slow hash would only slow down each call.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from qwen_wsgi import setting_values
from qwen_wsgi.access.limits import Limits
from qwen_wsgi.access.permit import matches
from qwen_wsgi.errors import ApiError
from qwen_wsgi.net import ip_address, is_loopback_address

PREFIX: Final = "sk-qp-"
#: Begins the ids of keys; digests of environment keys have no such letters.
ID_PREFIX: Final = "key_"

_KEY_BYTES: Final = 24
_ID_BYTES: Final = 12

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
#: Names that clients without a row in the database have.
_TAKEN: Final = re.compile(r"local|command|env-(admin-)?[0-9]+|key_.*", re.IGNORECASE)

_MOST_ENTRIES: Final = 64
_ENTRY_CHARS: Final = 200
_NOTE_CHARS: Final = 1000
_LARGEST: Final = 10**12

#: Members of the JSON that nobody writes.
_READ_ONLY: Final = frozenset({"id", "created_at", "revoked_at", "last_used_at", "key"})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class KeyProblem(ValueError):
    """What somebody wrote about a key cannot be taken. `str()` is a sentence for them.

    Attributes:
        param: the member of the JSON, or "".
    """

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class NameTaken(KeyProblem):
    """Another key that is not revoked has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is a key with the name '{name}' already. Take another name, or revoke that "
            "one first.",
            "name",
        )


class KeysUnavailable(ApiError):
    """The keys cannot be read or changed now. `str()` says why, for the log and the operator; what
    clients are told is `told`."""

    status = 503

    def __init__(self, why: str, *, passing: bool = False) -> None:
        super().__init__(why, code="keys_unavailable", retry_after_s=1 if passing else None)
        self.passing = passing

    def told(self) -> ApiError:
        """The refusal of a client, which need not know of files."""
        return ApiError(
            "This proxy cannot read its client keys now, so it cannot tell whether yours is one of "
            "them. Its operator finds the reason in its log.",
            status=503,
            code=self.code,
            retry_after_s=self.retry_after_s,
        )


@dataclass(frozen=True)
class ClientKey:
    """A key without its secret; the members are those of its JSON.

    Times are seconds since 1970. None and () mean "no limit".

    Attributes:
        id: what belongs to the client belongs to it; it stays when the key is rotated.
        name: of the person or program, for people; unique among the keys that are not revoked.
        rpm, tpm: requests and tokens within 60 s.
        tokens_per_day, money_per_month: by the box's local midnight.
        concurrency: calls at a time.
        models: patterns, see `Permit`.
        accounts: names.
        cidr: networks from which it may be used.
        tools: tools of the proxy that it may use, as patterns of servers (`time`) or of tools
            (`time.now`); () for none.
        tools_always: its chat calls get all of them, and need not name them.
        admin: may use `/admin/v1`.
        metrics: may read `/metrics`.
        cache: how long the response cache keeps its answers, in seconds; 0 keeps none, None leaves
            it to the server.
    """

    id: str
    name: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    tokens_per_day: int | None = None
    money_per_month: float | None = None
    concurrency: int | None = None
    models: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    cidr: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tools_always: bool = False
    admin: bool = False
    metrics: bool = False
    note: str = ""
    cache: int | None = None
    last_used_at: int | None = None

    def json(self) -> dict[str, Any]:
        """The key as the command line and `/admin/v1/keys` tell it."""
        value = {field: getattr(self, field) for field in _FIELDS}
        return {
            name: list(each) if isinstance(each, tuple) else each for name, each in value.items()
        }

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at

    def is_valid(self, now: float) -> bool:
        """Whether somebody may still call with it."""
        return self.revoked_at is None and not self.expired(now)

    def allows_model(self, name: str) -> bool:
        """Whether it may ask for a model, by the name that the upstream gets."""
        return not self.models or matches(name, self.models)

    def allows_tool(self, server: str, name: str) -> bool:
        """Whether it may use a tool that the proxy runs."""
        return matches(server, self.tools) or matches(f"{server}.{name}", self.tools)

    def allows_address(self, address: str) -> bool:
        """Whether it may be used from an address; `unix` is this machine."""
        if not self.cidr:
            return True
        if address == "unix":
            return any(network.is_loopback for network in self._networks)
        parsed = ip_address(address)
        if parsed is None:
            return False
        if any(parsed in network for network in self._networks):
            return True
        # A program on this machine reaches it by either family.
        here = is_loopback_address(address)
        return here and any(network.is_loopback for network in self._networks)

    @cached_property
    def limits(self) -> Limits | None:
        """What may be taken with it; None if nothing is limited."""
        limits = Limits(
            self.rpm, self.tpm, self.tokens_per_day, self.money_per_month, self.concurrency
        )
        return None if limits == Limits() else limits

    @cached_property
    def _networks(self) -> tuple[Network, ...]:
        return tuple(map(ipaddress.ip_network, self.cidr))


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(ClientKey))


def of_json(value: Mapping[str, Any]) -> ClientKey:
    """A key from its JSON, as `ClientKey.json` made it; what a newer version added is left out.

    Raises:
        TypeError, ValueError: it is not such JSON.
    """
    known: dict[str, Any] = {
        name: tuple(each) if isinstance(each := value[name], list) else each
        for name in _FIELDS
        if name in value
    }
    key = ClientKey(**known)
    if not isinstance(key.id, str) or not isinstance(key.name, str):
        raise ValueError("a key without id or name")
    list(key._networks)
    return key


class KeptKey(NamedTuple):
    """A key with what it is found by.

    Attributes:
        digests: of its secrets, each with the time until which it is valid; None for no end.
    """

    key: ClientKey
    digests: tuple[tuple[bytes, int | None], ...]


class KeySet(NamedTuple):
    """All keys at one moment.

    Attributes:
        number: another one after every change; 0 before the first one.
    """

    number: int
    keys: tuple[KeptKey, ...]


class NewKey(NamedTuple):
    """A key that was made just now, with its secret."""

    secret: str
    key: ClientKey


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret).digest()


def new_secret(random: Callable[[int], bytes]) -> str:
    """A new secret: `sk-qp-` and 192 random bits in hexadecimal.

    Args:
        random: so many random bytes.
    """
    return PREFIX + random(_KEY_BYTES).hex()


def new_key(changes: Mapping[str, Any], *, now: float, random: Callable[[int], bytes]) -> NewKey:
    """Make a key.

    Args:
        changes: its members, as `changes_of` read them.
        random: as for `new_secret`.

    Raises:
        KeyProblem: it has no name.
    """
    if "name" not in changes:
        raise KeyProblem("A key needs a name: of the person or the program that uses it.", "name")
    id = ID_PREFIX + random(_ID_BYTES).hex()
    return NewKey(new_secret(random), ClientKey(id=id, created_at=int(now), **changes))


# --- what people write ---------------------------------------------------------------------------


def changes_of(body: Mapping[str, Any], *, now: float) -> dict[str, Any]:
    """The members of a key that a JSON object of somebody sets, checked.

    Besides the members of a key it may have `expires`: a duration from now, `30d`.

    Raises:
        KeyProblem: a member is unknown, is not for people to write, or has a wrong value.
    """
    changes: dict[str, Any] = {}
    for name, value in body.items():
        if name in _READ_ONLY:
            raise KeyProblem(f"'{name}' cannot be set.", name)
        if name == "expires":
            if "expires_at" in body:
                raise KeyProblem("Give either 'expires' or 'expires_at'.", name)
            changes["expires_at"] = None if value is None else int(now + seconds_of(value, name))
        elif name in _READERS:
            changes[name] = _READERS[name](name, value)
        else:
            known = ", ".join([*_READERS, "expires"])
            raise KeyProblem(f"There is no member '{name[:64]}'. The members are: {known}.")
    return changes


def seconds_of(value: object, param: str, *, zero: bool = False) -> float:
    """A duration as people write it: `30d`, `1h`, or a number of seconds.

    Raises:
        KeyProblem: it is none.
    """
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    try:
        found = setting_values.seconds(zero=zero)(text.strip())
    except ValueError:
        found = math.inf
    if found > _LARGEST:
        raise KeyProblem(
            f"'{param}' must be a duration such as 30d, 12h or 15m, but is {_shown(value)}.", param
        )
    return found


def value_of(name: str, text: str) -> Any:
    """The JSON value that a word of the command line stands for: `none` takes a limit away.

    What is no number stays a text, and `changes_of` refuses it.
    """
    lists = name in ("models", "accounts", "cidr", "tools")
    if text.strip().lower() in ("none", "never", ""):
        return [] if lists else "" if name == "note" else None
    if lists:
        return list(setting_values.words(text))
    if name in ("rpm", "tpm", "tokens_per_day", "concurrency", "money_per_month"):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _cache(param: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lower() == "off":
        return 0
    return int(seconds_of(value, param, zero=True))


def _name(param: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise KeyProblem(
            f"The name of a key has 1 to 64 letters, digits and . _ - @, and begins with a letter "
            f"or a digit; {_shown(value)} is none.",
            param,
        )
    if _TAKEN.fullmatch(value):
        raise KeyProblem(
            f"'{value}' cannot be the name of a key: local, env-1 and the like are the names of "
            "other clients.",
            param,
        )
    return value


def _count(param: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise KeyProblem(
            f"'{param}' must be a whole number above 0, but is {_shown(value)}.", param
        )
    return value


def _money(param: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
        raise KeyProblem(f"'{param}' must be a number above 0, but is {_shown(value)}.", param)
    return float(value)


def _time(param: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise KeyProblem(
            f"'{param}' must be a time in seconds since 1970, but is {_shown(value)}.", param
        )
    return value


def _words(param: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise KeyProblem(f"'{param}' must be a list of texts, but is {_shown(value)}.", param)
    found = tuple(dict.fromkeys(each.strip() for each in value if each.strip()))
    if len(found) > _MOST_ENTRIES or any(len(each) > _ENTRY_CHARS for each in found):
        raise KeyProblem(
            f"'{param}' may have {_MOST_ENTRIES} entries of {_ENTRY_CHARS} characters.", param
        )
    if not all(each.isprintable() for each in found):
        raise KeyProblem(f"'{param}' has characters that cannot be shown.", param)
    if value and not found:  # "no limit" would be the opposite of what was meant
        raise KeyProblem(f"'{param}' has no entry that is not empty.", param)
    return found


def _networks(param: str, value: object) -> tuple[str, ...]:
    found = []
    for word in _words(param, value):
        try:
            found.append(str(ipaddress.ip_network(word, strict=False)))
        except ValueError:
            raise KeyProblem(
                f"'{param}' must have networks or addresses, such as 192.168.1.0/24 or fd00::/8, "
                f"but has {_shown(word)}.",
                param,
            ) from None
    return tuple(dict.fromkeys(found))


def _flag(param: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise KeyProblem(f"'{param}' must be true or false, but is {_shown(value)}.", param)
    return value


def _note(param: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _NOTE_CHARS or not value.isprintable():
        raise KeyProblem(f"'{param}' must be one line of up to {_NOTE_CHARS} characters.", param)
    return value


_READERS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "name": _name,
    "expires_at": _time,
    "rpm": _count,
    "tpm": _count,
    "tokens_per_day": _count,
    "money_per_month": _money,
    "concurrency": _count,
    "models": _words,
    "accounts": _words,
    "cidr": _networks,
    "tools": _words,
    "tools_always": _flag,
    "admin": _flag,
    "metrics": _flag,
    "note": _note,
    "cache": _cache,
}


def _shown(value: object) -> str:
    return repr(value)[:60]
