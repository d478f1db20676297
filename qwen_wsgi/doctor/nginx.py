"""Checks nginx: is our site enabled, does it lead to the server, does it pass streams through."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen_wsgi import net
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings

TELL: Final = Teller("nginx")

_SITE: Final = "qwen-proxy.conf"
_AVAILABLE: Final = f"etc/nginx/sites-available/{_SITE}"
#: Where Debian and others enable sites.
_ENABLED: Final = ("etc/nginx/sites-enabled", "etc/nginx/conf.d")
_DEFAULT_SITE: Final = "etc/nginx/sites-enabled/default"

_TIMEOUT_S: Final = 15.0
#: nginx's own defaults: proxy_read_timeout, and client_max_body_size in bytes.
_READ_S: Final = 60.0
_BODY_BYTES: Final = 1024 * 1024

_UNITS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZES: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}

#: Where `make install TLS=internal` has its certificate, which it renews.
_OWN_AUTHORITY: Final = "/etc/qwen-proxy/tls/"
_DAY_S: Final = 86_400
_SOON_DAYS: Final = 30

_RELOAD: Final = "then: sudo nginx -t && sudo systemctl reload nginx"


class NotHere(Exception):
    """There is no nginx, or no site of ours is enabled; the message says why."""


class NotEnabled(NotHere):
    """Our site is installed, and not enabled."""


@dataclass(frozen=True)
class Site:
    """Our site as nginx reads it.

    Attributes:
        path: the file that enables it.
        text: its content without comments.
    """

    path: Path
    text: str

    def values(self, name: str) -> list[str]:
        """The values of a directive, in the order of the file."""
        return re.findall(rf"(?m)(?:^|[;{{}}])\s*{name}\s+([^;]+?)\s*;", self.text)

    @property
    def upstreams(self) -> tuple[Address, ...]:
        """The servers that requests are passed to."""
        groups = dict(re.findall(r"upstream\s+(\S+)\s*\{([^}]*)\}", self.text))
        found = []
        for url in self.values("proxy_pass"):
            name = re.sub(r"^https?://", "", url)
            servers = re.findall(r"server\s+([^;\s]+)", groups[name]) if name in groups else [name]
            found += [parsed for each in servers if (parsed := _address(each)) is not None]
        return tuple(dict.fromkeys(found))

    @property
    def open_at(self) -> tuple[str, ...]:
        """The addresses at which other machines reach it."""
        found = []
        for value in self.values("listen"):
            word = value.split()[0]
            parsed = _address(word if ":" in word or not word.isdigit() else f"0.0.0.0:{word}")
            if parsed is not None and parsed.open_to_lan:
                found.append(word if ":" in word else f"port {word}")
        return tuple(found)


def look(machine: Machine) -> Site:
    """Find the enabled site that leads to a qwen-proxy.

    Raises:
        NotHere: there is no nginx, or no such site.
        NotEnabled: there is such a site, and it is not enabled.
    """
    if machine.program("nginx") is None:
        raise NotHere("there is no nginx here")
    unread = []
    for place in _ENABLED:
        directory = machine.root / place
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            try:
                text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(errors="replace"))
            except OSError:
                unread.append(path)
                continue
            if path.name == _SITE or "qwen_proxy" in text or "qwen-proxy" in text:
                return Site(path, text)
    if unread:
        raise NotHere(f"{unread[0]} cannot be read")
    if (machine.root / _AVAILABLE).exists():
        raise NotEnabled("the site is installed, but not enabled")
    raise NotHere("the site of qwen-proxy is not installed")


def check(
    settings: Settings,
    found: Site | NotHere,
    bind: Address | None,
    machine: Machine,
    *,
    group: str,
) -> Iterator[Finding]:
    """
    Args:
        found: the site, or why there is none.
        bind: where the server listens, if known.
        group: the group that may use the server's socket; "" if unknown.
    """
    if isinstance(found, NotEnabled):
        yield TELL.warn(
            _SITE,
            str(found),
            f"sudo ln -s ../sites-available/{_SITE} /etc/nginx/sites-enabled/, {_RELOAD}",
        )
    if isinstance(found, NotHere):
        if not isinstance(found, NotEnabled):
            yield TELL.skipped("site", str(found))
        return
    yield TELL.ok("site", f"{found.path} is enabled")
    yield from running(machine)
    yield from tested(machine)
    yield from target(found, bind)
    yield from streaming(settings, found)
    yield from websockets(settings, found)
    yield from certificates(found, machine)
    yield from others(found, machine)
    if group and any(each.path for each in found.upstreams):
        yield from socket_group(group, machine)


def running(machine: Machine) -> Iterator[Finding]:
    """Check that nginx runs."""
    try:
        pid = (machine.root / "run/nginx.pid").read_text().strip()
    except FileNotFoundError:
        pid = ""
    except OSError as error:
        yield TELL.skipped("process", f"its pid file cannot be read ({error.strerror})")
        return
    if pid.isdigit() and (machine.root / f"proc/{pid}").exists():
        yield TELL.ok("process", f"nginx runs as process {pid}")
    else:
        yield TELL.fail("process", "nginx is not running", "sudo systemctl enable --now nginx")


def test(machine: Machine) -> tuple[int, str] | None:
    """Exit status and first line of `nginx -t`; None without nginx. For root.

    Raises:
        OSError: it cannot be run.
    """
    if (program := machine.program("nginx")) is None:
        return None
    done = machine.run([program, "-t"], timeout_s=_TIMEOUT_S)
    return done.status, next(iter((done.err or done.out).strip().splitlines()), "")


def tested(machine: Machine) -> Iterator[Finding]:
    """Let nginx test its configuration."""
    done = machine.root_saw.nginx_test if machine.root_saw else None
    if machine.uid == 0:
        try:
            done = test(machine)
        except OSError as error:
            yield TELL.skipped("nginx -t", f"nginx cannot be run ({error})")
            return
    if done is None:
        yield TELL.skipped("nginx -t", "only root can test the configuration", "sudo nginx -t")
        return
    status, said = done
    if status:
        yield TELL.fail("nginx -t", said or f"status {status}", "Correct it, then: sudo nginx -t")
    else:
        yield TELL.ok("nginx -t", "the configuration is valid")


def target(site: Site, bind: Address | None) -> Iterator[Finding]:
    """Check that the site leads to the server."""
    shown = ", ".join(map(str, site.upstreams))
    if bind is None:
        yield TELL.skipped("upstream", "it is not known where the server listens")
    elif not site.upstreams:
        yield TELL.warn("upstream", "the site has no proxy_pass", "Install it again: make install")
    elif any(bind.is_same(each) for each in site.upstreams):
        yield TELL.ok("upstream", f"leads to {shown}, where the server listens")
    else:
        yield TELL.fail(
            "upstream",
            f"leads to {shown}, but the server listens at {bind}: every call gets a 502",
            f"Correct `server` in {site.path}, or QWEN_PROXY_BIND; {_RELOAD}",
        )


def streaming(settings: Settings, site: Site) -> Iterator[Finding]:
    """Check buffering, timeouts and the largest body."""
    faults = list(_streaming_faults(settings, site))
    yield from faults or [
        TELL.ok("streams", "answers are not buffered, and the timeouts are long enough")
    ]


def _streaming_faults(settings: Settings, site: Site) -> Iterator[Finding]:
    correct = f"Correct it in {site.path}, {_RELOAD}"
    buffering = site.values("proxy_buffering")
    if "off" not in buffering or "on" in buffering:
        yield TELL.warn(
            "proxy_buffering", "is on, so an answer may arrive in one piece at its end", correct
        )
    read_s = min(map(_seconds, site.values("proxy_read_timeout")), default=_READ_S)
    if read_s < settings.first_byte_timeout_s:
        yield TELL.warn(
            "proxy_read_timeout",
            f"{read_s:g} s is less than the server's own limit of "
            f"{settings.first_byte_timeout_s:g} s: slow calls get a 504",
            correct,
        )
    body = min(map(_bytes, site.values("client_max_body_size")), default=_BODY_BYTES)
    if 0 < body < settings.max_body_bytes:
        yield TELL.warn(
            "client_max_body_size",
            f"{body} bytes is less than QWEN_PROXY_MAX_BODY ({settings.max_body_bytes})",
            correct,
        )
    largest = max(map(_bytes, site.values("client_max_body_size")), default=_BODY_BYTES)
    if body > 0 and largest < settings.max_upload_bytes:
        yield TELL.note(
            "uploads",
            f"of files end at {largest} bytes, before QWEN_PROXY_MAX_UPLOAD "
            f"({settings.max_upload_bytes})",
            f"To let larger ones pass, add the installed site's: {_AVAILABLE}.new; {_RELOAD}",
        )


def websockets(settings: Settings, site: Site) -> Iterator[Finding]:
    """Check that WebSockets pass: a site of an older version stops them."""
    headers = [value.split()[0].lower() for value in site.values("proxy_set_header")]
    if settings.websockets and "upgrade" not in headers:
        yield TELL.note(
            "WebSockets",
            "do not pass, because the site sets no header Upgrade: Codex and others use HTTP",
            f"To let them pass, add what the installed site has: {_AVAILABLE}.new; {_RELOAD}",
        )


def certificates(site: Site, machine: Machine) -> Iterator[Finding]:
    """Check how long the certificates of the site are good for."""
    program = machine.program("openssl")
    for path in site.values("ssl_certificate"):
        if program is None:
            yield TELL.skipped(path, "openssl, which reads certificates, is not installed")
            return
        try:
            done = machine.run(
                [program, "x509", "-noout", "-enddate", "-in", path], timeout_s=_TIMEOUT_S
            )
            if done.status:
                raise OSError((done.err or done.out).strip().partition("\n")[0])
            end_s = ssl.cert_time_to_seconds(done.out.strip().removeprefix("notAfter="))
        except (OSError, ValueError) as error:
            yield TELL.skipped(path, f"the certificate cannot be read ({error})")
            continue
        days = (end_s - machine.now()) / _DAY_S
        renew = "sudo make install" if path.startswith(_OWN_AUTHORITY) else "Renew it"
        if days < 0:
            what = f"the certificate ended {-days:.0f} days ago: no client accepts it"
            yield TELL.fail(path, what, f"{renew}, {_RELOAD}")
        elif days < _SOON_DAYS:
            what = f"the certificate ends in {days:.0f} days"
            yield TELL.warn(path, what, f"{renew}, {_RELOAD}")
        else:
            yield TELL.ok(path, f"the certificate is valid for {days:.0f} days")


def others(site: Site, machine: Machine) -> Iterator[Finding]:
    """Find other files that interfere."""
    fresh = machine.root / f"{_AVAILABLE}.new"
    if fresh.exists():
        yield TELL.note(
            str(fresh),
            "an upgrade installed a newer site beside yours, which you edited",
            f"diff {fresh} {site.path}",
        )
    listens = " ".join(site.values("listen"))
    default = machine.root / _DEFAULT_SITE
    if default.exists() and re.search(r"\b80\b", listens) and "default_server" not in listens:
        names = " ".join(site.values("server_name")) or "none"
        yield TELL.note(
            str(default),
            f"Debian's default site answers every name except {names}, and the bare IP address",
            f"sudo rm {default}, {_RELOAD}",
        )


def socket_group(group: str, machine: Machine) -> Iterator[Finding]:
    """Check that nginx's user is in the group that may use the socket."""
    try:
        text = (machine.root / "etc/nginx/nginx.conf").read_text(errors="replace")
    except OSError as error:
        yield TELL.skipped("socket", f"nginx.conf cannot be read ({error.strerror})")
        return
    found = re.search(r"(?m)^\s*user\s+([^\s;]+)", text)
    user = found[1] if found else "www-data"
    if user == "root":
        return
    member = machine.in_group(user, group)
    if member is None:
        yield TELL.skipped("socket", f"there is no user {user} or no group {group}")
    elif member:
        yield TELL.ok("socket", f"{user} is in the group {group}, which may use the socket")
    else:
        yield TELL.fail(
            "socket",
            f"nginx's user {user} is not in the group {group}: every call gets a 502",
            f"sudo usermod -aG {group} {user} && sudo systemctl restart nginx",
        )


def _address(text: str) -> Address | None:
    try:
        return net.parse(text.removesuffix(":") if text.startswith("unix:") else text)
    except ValueError:
        return None


def _seconds(value: str) -> float:
    """Parse a time of nginx, e.g. `3600s` or `1h 30m`."""
    parts: Sequence[tuple[str, str]] = re.findall(r"(\d+)(ms|s|m|h|d|)", value)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _bytes(value: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg]?)", value.lower())
    return int(found[1]) * _SIZES[found[2]] if found else 0
