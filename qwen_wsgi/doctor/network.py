"""Checks the network path to each upstream host: DNS, connection, TLS, and HTTP proxies."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.doctor.parallel import run_parallel
from qwen_wsgi.net import is_loopback

TELL: Final = Teller("network")

_TIMEOUT_S: Final = 10.0
#: A resolver may take 30 s, and takes no timeout.
_TOTAL_S: Final = 25.0
_SOON_S: Final = 14 * 86_400.0

_PORTS: Final = {"http": 80, "https": 443}


class Target(NamedTuple):
    """One host, and the names of the accounts that use it."""

    scheme: str
    host: str
    port: int
    users: tuple[str, ...]
    #: Whether a secret is sent to it.
    secret: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def targets(used: Iterable[tuple[str, str, bool]]) -> tuple[Target, ...]:
    """The distinct hosts of `(user, base URL, secret)`."""
    found: dict[tuple[str, str, int], Target] = {}
    for user, url, secret in used:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 443)
        key = (parts.scheme, parts.hostname or "", port)
        known = found.get(key)
        users = (*known.users, user) if known else (user,)
        found[key] = Target(*key, users, secret or bool(known and known.secret))
    return tuple(found.values())


def check(
    hosts: tuple[Target, ...], environ: Mapping[str, str], machine: Machine
) -> Iterator[Finding]:
    """Try to reach each host, all at the same time."""
    if not hosts:
        yield TELL.skipped("upstreams", "there is no upstream host")
    works = [partial(check_host, host, environ, machine) for host in hosts]

    def failed(place: int, error: Exception | None) -> list[Finding]:
        if error is not None:
            return [TELL.skipped(str(hosts[place]), f"the check itself failed ({error!r})")]
        return [
            TELL.fail(
                str(hosts[place]),
                f"no name resolution and no connection within {_TOTAL_S:.0f} s",
                "Check the resolver (/etc/resolv.conf) and the network.",
            )
        ]

    for findings in run_parallel(works, timeout_s=_TOTAL_S, failed=failed):
        yield from findings


def check_host(target: Target, environ: Mapping[str, str], machine: Machine) -> list[Finding]:
    """Check one host."""
    findings = []
    if target.scheme == "http" and target.secret and not is_loopback(target.host):
        findings.append(
            TELL.warn(
                str(target),
                f"the key of {', '.join(target.users)} crosses the network unencrypted (http)",
                "Use https, or run that server on this machine.",
            )
        )
    name, proxy = proxy_for(target, environ)
    if proxy is not None:
        return [*findings, *_through(target, name, proxy, machine)]
    return [*findings, _straight(target, machine)]


def proxy_for(target: Target, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The variable that names a proxy for a host, and the proxy's URL or None; as in requests."""
    # The lower-case name wins.
    named = {name.lower(): (name, environ[name]) for name in sorted(environ) if environ[name]}
    if _is_exempt(target, named.get("no_proxy", ("", ""))[1]):
        return "", None
    for name in (f"{target.scheme}_proxy", "all_proxy"):
        if name in named:
            return named[name]
    return "", None


def _is_exempt(target: Target, no_proxy: str) -> bool:
    """Whether `no_proxy` matches a host: `*`, names, domains, and networks."""
    for word in no_proxy.lower().replace(" ", "").split(","):
        bare = word.lstrip(".")
        if word == "*" or (bare and bare in (target.host, str(target))):
            return True
        if bare and (target.host.endswith(f".{bare}") or str(target).endswith(f".{bare}")):
            return True
        try:
            if "/" in word and ipaddress.ip_address(target.host) in ipaddress.ip_network(word):
                return True
        except ValueError:
            continue
    return False


def _through(target: Target, name: str, proxy: str, machine: Machine) -> Iterator[Finding]:
    """Check the path through a proxy: only the proxy itself is contacted."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 1080)
    except ValueError:
        yield TELL.fail(
            str(target), f"{name} is not the URL of a proxy", f"Correct or unset {name}."
        )
        return
    # Not the whole URL: it may hold a password.
    shown = f"{host}:{port}"
    yield TELL.note(str(target), f"is reached through the proxy {shown} ({name})")
    try:
        machine.connect(host, port, timeout_s=_TIMEOUT_S)
    except OSError as error:
        yield TELL.fail(
            shown, f"the proxy cannot be reached ({_reason(error)})", f"Correct or unset {name}."
        )
    else:
        yield TELL.ok(shown, "the proxy is reachable")


def _straight(target: Target, machine: Machine) -> Finding:
    """Check the path without a proxy."""
    subject = str(target)
    try:
        addresses = machine.resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        return TELL.fail(
            subject,
            f"its name does not resolve ({_reason(error)})",
            "Check the base URL, the resolver (/etc/resolv.conf) and the network.",
        )
    begun_s = machine.monotonic()
    try:
        machine.connect(target.host, target.port, timeout_s=_TIMEOUT_S)
    except OSError as error:
        return TELL.fail(
            subject,
            f"no connection to {_first(addresses)} ({_reason(error)})",
            "Check that the server is running."
            if is_loopback(target.host)
            else "Check the network and the firewall; if there is an HTTP proxy, set HTTPS_PROXY.",
        )
    what = f"resolves to {_first(addresses)}, connects in {machine.monotonic() - begun_s:.2f} s"
    if target.scheme == "http":
        return TELL.ok(subject, f"{what}; plain http")
    return _secured(target, what, machine)


def _secured(target: Target, what: str, machine: Machine) -> Finding:
    """Check TLS; `what` says what was found before."""
    subject = str(target)
    try:
        end_s = machine.certificate_end(target.host, target.port, timeout_s=_TIMEOUT_S)
    except ssl.SSLCertVerificationError as error:
        return TELL.fail(
            subject,
            f"its certificate is not trusted ({error.verify_message})",
            "Check the base URL and the clock. If a firewall intercepts TLS, set "
            "REQUESTS_CA_BUNDLE to its certificate.",
        )
    except (OSError, KeyError, ValueError) as error:
        return TELL.fail(
            subject,
            f"TLS fails ({_reason(error)})",
            "Check the base URL (https or http, port), the clock and REQUESTS_CA_BUNDLE.",
        )
    left_s = end_s - machine.now()
    until = f"its certificate is valid until {_day(end_s)}"
    if left_s < _SOON_S:
        return TELL.warn(
            subject,
            f"{until}, {left_s / 86_400:.0f} days from now",
            "The host's operator must renew it; check this machine's clock, too.",
        )
    return TELL.ok(subject, f"{what}, {until}")


def _first(addresses: tuple[str, ...]) -> str:
    if not addresses:
        return "no address"
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return addresses[0] + more


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror | OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _day(at_s: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d}"
    except (OverflowError, ValueError, OSError):
        return "an impossible date"
