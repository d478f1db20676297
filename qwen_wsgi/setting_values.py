"""Reads the values of settings: numbers, durations, sizes, lists, names. Pure.

Each function takes the text of a variable, without white space around it, and returns the value.
What it cannot read is a ValueError, whose text ends the sentence "NAME='text': …".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from qwen_wsgi import plan_limits
from qwen_wsgi.hosts import Family
from qwen_wsgi.plan_limits import Plans

#: A number without a unit is seconds.
_SECONDS: Final = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 604_800.0,
}
_DURATION: Final = re.compile(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)

#: A number without a unit is bytes. All units are powers of 1024, also `MB`: as in nginx.
_BYTES: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SIZE: Final = re.compile(r"([0-9]+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)

#: A host, or `*.` and what all hosts below it end with.
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9])?")

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")

_ACCOUNT: Final = re.compile(r"[a-z0-9][a-z0-9-]*")

#: Of a key that signs: its guesses can be tried without asking anybody.
_LONG_KEY_CHARS: Final = 32


def text(raw: str) -> str:
    """Any text."""
    return raw


def whole_path(raw: str) -> str:
    """A path of the file system, from its root on."""
    if not raw.startswith("/") or "\0" in raw:
        raise ValueError("must be a whole path, from / on")
    return raw


def words(raw: str) -> tuple[str, ...]:
    """Words that are separated by commas."""
    return tuple(word for word in (part.strip() for part in raw.split(",")) if word)


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A whole number within bounds."""

    def parse(raw: str) -> int:
        return _within(int(raw), minimum, maximum)

    return parse


def seconds(*, zero: bool = False) -> Callable[[str], float]:
    """A duration: `1.5`, `90s`, `5m`, `2h`, `7d`; in seconds.

    Args:
        zero: whether 0 is allowed.
    """

    def parse(raw: str) -> float:
        value = _duration(raw)
        # `not >` also refuses NaN.
        if not (value >= 0 if zero else value > 0) or value == float("inf"):
            raise ValueError(
                "must be a duration "
                + ("from 0" if zero else "above 0")
                + ": seconds, or a number with s, m, h or d"
            )
        return value

    return parse


def whole_seconds(minimum: int) -> Callable[[str], int]:
    """A duration of whole seconds: `60`, `60s`, `5m`."""

    def parse(raw: str) -> int:
        value = _duration(raw)
        if not value.is_integer():
            raise ValueError("must be whole seconds: a number, or one with s, m, h or d")
        return _within(int(value), minimum, None)

    return parse


def size(minimum: int) -> Callable[[str], int]:
    """A size: `65536`, `64k`, `64M`, `1 GiB`; in bytes, with units of 1024."""

    def parse(raw: str) -> int:
        found = _SIZE.fullmatch(raw)
        if not found:
            raise ValueError("must be a size: bytes, or a number with k, m or g (64m is 64 MiB)")
        return _within(int(found[1]) * _BYTES[found[2].lower()], minimum, None)

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """One of some words."""

    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return raw

    return parse


def sandbox(raw: str) -> str:
    """`0`, `1` or `auto`, as `off`, `on` or `auto`."""
    known = {"0": "off", "off": "off", "1": "on", "on": "on", "auto": "auto"}
    if raw.lower() not in known:
        raise ValueError("must be 0, 1 or auto")
    return known[raw.lower()]


def flag(raw: str) -> bool:
    """`0` or `1`."""
    known = {"0": False, "off": False, "false": False, "1": True, "on": True, "true": True}
    if raw.lower() not in known:
        raise ValueError("must be 0 or 1")
    return known[raw.lower()]


def aliases(raw: str) -> tuple[tuple[str, str], ...]:
    """Pairs of `NAME=MODEL`."""
    found = {}
    for word in words(raw):
        name, equals, model = (part.strip() for part in word.partition("="))
        if not equals or not name or not model:
            raise ValueError("must be pairs of NAME=MODEL")
        if "*" in name[:-1]:
            raise ValueError("a * may only end a name")
        found[name] = model
    return tuple(found.items())


def plans(raw: str) -> Plans:
    """What plans allow, see `plan_limits`."""
    return plan_limits.parse(raw)


def fallbacks(raw: str) -> tuple[str, ...]:
    """Names of accounts, each perhaps with the model that it is asked for: `a,b:llama-4`."""
    found = words(raw)
    names = [word.partition(":")[0] for word in found]
    if any(not _ACCOUNT.fullmatch(name) for name in names) or any(w.endswith(":") for w in found):
        raise ValueError("must be names of accounts, or pairs of ACCOUNT:MODEL")
    if len(set(names)) < len(names):
        raise ValueError("names an account twice")
    return found


def voices(raw: str) -> tuple[tuple[str, str], ...]:
    """Pairs of `NAME=VOICE`."""
    found = {}
    for word in words(raw):
        name, equals, voice = (part.strip() for part in word.partition("="))
        if not equals or not name or not voice:
            raise ValueError("must be pairs of NAME=VOICE")
        found[name.lower()] = voice
    return tuple(found.items())


def hosts(raw: str) -> tuple[str, ...]:
    """Names of hosts; `*.example.com` is every host below it."""
    found = words(raw.lower())
    for host in found:
        if not _HOST.fullmatch(host):
            raise ValueError("must be names of hosts, without scheme, port and path")
    return found


def hosts_with_ports(raw: str) -> tuple[str, ...]:
    """Names of hosts, each with a port or without one: `mcp.example`, `box.lan:8080`."""
    found = words(raw.lower())
    for word in found:
        host, colon, port = word.partition(":")
        if not _HOST.fullmatch(host) or (colon and not _PORT.fullmatch(port)):
            raise ValueError(
                "must be names of hosts, as in mcp.example or box.lan:8080, without scheme and path"
            )
    return found


def host_families(raw: str) -> tuple[tuple[str, str], ...]:
    """Pairs of `HOST=FAMILY`."""
    allowed = tuple(each.value for each in Family if each not in (Family.SANDBOX, Family.WEB))
    found = {}
    for word in words(raw):
        host, equals, family = (part.strip().lower() for part in word.partition("="))
        if not equals or not _HOST.fullmatch(host):
            raise ValueError("must be pairs of HOST=FAMILY, the host without scheme, port and path")
        if family not in allowed:
            raise ValueError("the family must be one of " + ", ".join(allowed))
        found[host] = family
    return tuple(found.items())


def log_level(raw: str) -> str:
    """A level of logging, in any case."""
    return choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")(raw.upper())


def base_url(raw: str) -> str:
    """A URL, without slashes at its end."""
    if not raw.startswith(("http://", "https://")) or any(c.isspace() for c in raw):
        raise ValueError("must be a URL that begins with http:// or https://")
    return raw.rstrip("/")


def public_url(raw: str) -> str:
    """The address of a server: `https://qwen.lan`; `/v1` at its end is removed."""
    found = base_url(raw).removesuffix("/v1").rstrip("/")
    if not re.fullmatch(r"https?://[^/@?#]+", found):
        raise ValueError("must be an address such as https://qwen.lan, without a path")
    return found


#: What the URL of a Redis may have behind `?`, as the package `redis` reads it.
_REDIS_OPTIONS: Final = ("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def redis_url(raw: str) -> str:
    """The URL of a Redis, for which the package `redis` is needed."""
    if not raw.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must be a URL that begins with redis://, rediss:// or unix://")
    try:
        url = urlsplit(raw)
        port, options = url.port, parse_qs(url.query, strict_parsing=bool(url.query))
    except ValueError:
        # The text of the error may quote the password.
        raise ValueError(
            "is no URL; in a password, write characters such as / @ # ? as %2F %40 %23 %3F"
        ) from None
    path = url.path
    if url.scheme == "unix":
        if not path.strip("/") or url.hostname:
            raise ValueError("must name a socket, as in unix:///run/redis/redis.sock")
        numbers = options.get("db", [])
    else:
        if not url.hostname or port == 0:
            raise ValueError("must name a host, as in redis://192.168.1.5:6379/0")
        numbers = [path.strip("/")] if path.strip("/") else options.get("db", [])
    if not all(number.isascii() and number.isdigit() for number in numbers) or url.fragment:
        raise ValueError("must end with the number of a database or nothing, as in …:6379/0")
    if unknown := sorted(set(options) - set(_REDIS_OPTIONS)):
        raise ValueError(f"has an option that is not known: {unknown[0]}")
    if find_spec("redis") is None:
        raise ValueError(
            "the Python package `redis` is not installed, which it needs "
            "(pip install 'qwen-wsgi[redis]')"
        )
    return raw


def passwords_of(url: str) -> tuple[str, ...]:
    """The password in a URL that was read, as it is and as it is written; () if there is none."""
    written = urlsplit(url).password or ""
    return tuple(dict.fromkeys((unquote(written), written))) if written else ()


def trusted_proxies(raw: str) -> tuple[str, ...]:
    """Networks, or `unix`."""
    found = words(raw)
    for word in found:
        if word != "unix":
            ipaddress.ip_network(word, strict=False)
    return found


def timezone(raw: str) -> str:
    """The name of a time zone of this machine's list."""
    try:
        ZoneInfo(raw)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            "is no time zone that this machine knows (such as Europe/Berlin; the list is that of "
            "Debian's package tzdata)"
        ) from None
    return raw


def key(raw: str) -> str:
    """A secret without white space."""
    if any(c.isspace() for c in raw):
        raise ValueError("must not contain white space")
    return raw


def long_key(raw: str) -> str:
    """A secret that cannot be guessed."""
    if len(raw) < _LONG_KEY_CHARS:
        raise ValueError(f"must have at least {_LONG_KEY_CHARS} characters (openssl rand -hex 32)")
    return key(raw)


def keys(raw: str) -> tuple[str, ...]:
    """Secrets that are separated by commas."""
    return tuple(key(word) for word in words(raw))


def _within(value: int, minimum: int, maximum: int | None) -> int:
    if value < minimum or (maximum is not None and value > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(f"must be at least {minimum}{upper}")
    return value


def _duration(raw: str) -> float:
    found = _DURATION.fullmatch(raw)
    unit = found[2].lower() if found else ""
    if not found or unit not in _SECONDS:
        raise ValueError("must be seconds, or a number with s, m, h or d (90s, 5m)")
    return float(found[1]) * _SECONDS[unit]


def share(raw: str) -> float:
    """A part of the whole: above 0, up to 1."""
    value = float(raw)
    if not 0 < value <= 1:
        raise ValueError("must be a number above 0, up to 1")
    return value
