"""Fetches a result that an upstream names by its URL: a picture, a video, a sound, a transcript;
and sends a file to where an upstream wants to have it.

Connects only to an address that was checked, follows few redirects by the same rules, sends no
credential, and gives the bytes on as they come: a slow client makes a slow download.
"""

from __future__ import annotations

import io
import ipaddress
import math
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.net import ip_address
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.http.result_urls import WEB_HOSTS, RefusedURL, checked, is_public
from qwen_wsgi.upstream.http.transport import USER_AGENT, Transport

_REDIRECTS: Final = 3
_PIECE_BYTES: Final = 64 * 1024
#: An upstream that sends less than a kilobyte a second for so long is given up.
_SLOW_S: Final = 30.0
_SLOW_BYTES: Final = 1024 * int(_SLOW_S)

#: Names as `socket.getaddrinfo` gives them: family, kind, protocol, canonical name, address.
Resolve = Callable[..., list[tuple[Any, ...]]]


class Target(NamedTuple):
    """Where a result may be fetched from.

    Attributes:
        base_url: of the account whose answer named it.
        hosts: see `result_urls.checked`.
    """

    base_url: str
    hosts: Collection[str] = ()


class Download:
    """A result whose head has arrived; its owner must close it.

    Attributes:
        status: 200, or 206 for a part.
        headers: of the answer, in lower case.
        length: of the body in bytes, if the host says it.
    """

    def __init__(self, response: Any, pool: Any, max_bytes: int) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = {k.lower(): v for k, v in response.headers.items()}
        declared = self.headers.get("content-length", "")
        self.length = int(declared) if declared.isdecimal() and len(declared) < 16 else None
        self._response = response
        self._pool = pool
        if self.length is not None and self.length > max_bytes:
            self.close()
            raise _too_large(max_bytes)
        self._max_bytes = max_bytes

    def pieces(self) -> Iterator[bytes]:
        """The body, as it arrives.

        Raises:
            UpstreamError: it broke off, is larger than it may be, or came too slowly.
        """
        # Only the waits for the host count: the client may take its time.
        waited_s, recent, seen = 0.0, 0, 0
        try:
            while True:
                began_s = time.monotonic()
                piece = self._response.read1(_PIECE_BYTES)
                if not piece:
                    break
                waited_s += time.monotonic() - began_s
                seen += len(piece)
                recent += len(piece)
                if seen > self._max_bytes:
                    raise _too_large(self._max_bytes)
                yield piece
                if recent >= _SLOW_BYTES:
                    waited_s, recent = 0.0, 0
                elif waited_s > _SLOW_S:
                    raise _too_slow()
        except (HTTPError, OSError) as error:
            if isinstance(error, urllib3.exceptions.ReadTimeoutError | TimeoutError):
                raise _too_slow() from None
            raise _broken() from error
        if self.length is not None and seen < self.length:
            raise _broken()

    def read(self) -> bytes:
        """The whole body. Raises as `pieces`."""
        try:
            with io.BytesIO() as body:  # grows in place, and gives its bytes away
                body.writelines(self.pieces())
                return body.getvalue()
        finally:
            self.close()

    def close(self) -> None:
        """Free the connection; harmless when repeated."""
        with suppress(Exception):
            self._response.close()
        self._pool.close()


class Downloads:
    """Opens downloads. Shared by all greenlets of a worker; keeps nothing."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        *,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        self._connect_s = settings.connect_timeout_s
        self._hosts = (*settings.result_hosts, *(WEB_HOSTS if settings.web else ()))
        self._transport = transport
        self._resolve = resolve

    def open(
        self, url: object, base_url: str, *, max_bytes: int, headers: Mapping[str, str] = {}
    ) -> Download:
        """Fetch a result; returns as soon as the head of its answer is there.

        Args:
            url: as the upstream named it.
            base_url: of the account that it belongs to.
            max_bytes: a larger body is refused.
            headers: such as `Range`.

        Raises:
            UpstreamError: the URL leads elsewhere, nobody answers, or not with 200 or 206.
        """
        for _ in range(_REDIRECTS + 1):
            try:
                url = checked(url, base_url, self._hosts)
            except RefusedURL as error:
                raise _refused(error) from None
            response, pool = self._ask("GET", url, base_url, headers)
            status = response.status
            if status in (301, 302, 303, 307, 308) and (to := response.headers.get("location")):
                response.close()
                pool.close()
                url = urljoin(url, to)
                continue
            if status not in (200, 206):
                total = response.headers.get("content-range", "")
                response.close()
                pool.close()
                raise ResultMissing(status, total)
            return Download(response, pool, max_bytes)
        raise _refused("it was redirected too often")

    def send(
        self,
        url: object,
        base_url: str,
        pieces: Sequence[bytes],
        headers: Mapping[str, str],
        *,
        method: str = "POST",
        within_s: float = math.inf,
    ) -> int:
        """Send a file to a URL, by the rules for results; the status of the answer.

        Args:
            within_s: the whole file has to be sent by then.

        Raises:
            UpstreamError: the URL leads elsewhere, nobody answers, or it takes too long.
        """
        end_s = time.monotonic() + within_s
        try:
            url = checked(url, base_url, self._hosts)
        except RefusedURL as error:
            raise _refused(error) from None
        sent = {**headers, "Content-Length": str(sum(map(len, pieces)))}
        # Piece by piece: a whole file would have to be written within the time for connecting.
        body = (
            _in_time(piece[place : place + _PIECE_BYTES], end_s)
            for piece in pieces
            for place in range(0, len(piece), _PIECE_BYTES)
        )
        response, pool = self._ask(method, url, base_url, sent, body)
        try:
            return int(response.status)
        finally:
            response.close()
            pool.close()

    def _ask(
        self,
        method: str,
        url: str,
        base_url: str,
        headers: Mapping[str, str],
        body: Iterator[bytes] | None = None,
    ) -> tuple[Any, Any]:
        parts = urlsplit(url)
        assert parts.hostname is not None
        proxies, verify = self._transport.route(url)
        pool = self._pool(url, base_url, proxies, verify)
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        if proxies:
            target = url
        sent = {
            "Host": parts.netloc,
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            **headers,
        }
        try:
            response = pool.urlopen(
                method,
                target,
                body=body,
                headers=sent,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=self._connect_s, read=_SLOW_S),
            )
        except (HTTPError, OSError) as error:
            pool.close()
            raise connection_error(
                "unreachable", f"The host of the file cannot be reached ({type(error).__name__})."
            ) from error
        except BaseException:
            pool.close()
            raise
        return response, pool

    def _pool(self, url: str, base_url: str, proxies: Mapping[str, str], verify: bool | str) -> Any:
        """A pool of one connection to the checked address of the host."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        tls: dict[str, Any] = {}
        if parts.scheme == "https":
            tls["ca_certs"] = verify if isinstance(verify, str) else _certificates()
            tls["cert_reqs"] = "CERT_REQUIRED"
        if proxy := proxies.get(parts.scheme) or proxies.get("all"):
            # The proxy looks the name up, in its own network.
            return urllib3.ProxyManager(proxy, maxsize=1, **tls)
        address = self._address(host, parts.port or 0, base_url)
        if parts.scheme == "https":
            return urllib3.HTTPSConnectionPool(
                address, parts.port or 443, server_hostname=host, assert_hostname=host, **tls
            )
        return urllib3.HTTPConnectionPool(address, parts.port or 80)

    def _address(self, host: str, port: int, base_url: str) -> str:
        """The address to connect to: looked up once, and no other one is used.

        Raises:
            UpstreamError: it has none, or one of a network that is not the internet, where the
                account's own host is not.
        """
        if ip_address(host) is not None:  # only the account's own host may be one
            return host
        addresses = self._addresses(host, port)
        public = [each for each in addresses if is_public(each)]
        if public:
            return public[0]
        own = urlsplit(base_url)
        if host == own.hostname or not any(
            is_public(each) for each in self._addresses(own.hostname or "", own.port or 0)
        ):
            return addresses[0]
        raise _refused(f"its host {host[:64]} has an address of a private network")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        addresses = [str(each[4][0]) for each in found]
        if not addresses:
            raise connection_error("unreachable", "The host of the result has no address.")
        # IPv4 first: machines without IPv6 are still many.
        return sorted(addresses, key=lambda each: _version(each))


def _in_time(piece: bytes, end_s: float) -> bytes:
    if time.monotonic() > end_s:
        raise connection_error("timeout", "The file could not be sent in time.")
    return piece


def _version(address: str) -> int:
    return ipaddress.ip_address(address.partition("%")[0]).version


def _certificates() -> str:
    import certifi

    return certifi.where()


def _refused(why: object) -> UpstreamError:
    return UpstreamError(
        f"The upstream's result is not fetched: {why}.", code="upstream_result_refused"
    )


class ResultMissing(UpstreamError):
    """The host of a result does not give it.

    Attributes:
        upstream_status: what it answered; 403 and 404 where the result is gone, 416 where it has no
            such part.
        content_range: of a 416, such as `bytes */1000`.
    """

    def __init__(self, upstream_status: int, content_range: str = "") -> None:
        super().__init__(
            f"The host of the result answered HTTP {upstream_status}. Results are kept for 24 "
            "hours.",
            code="upstream_result_missing",
            should_retry=False,
        )
        self.upstream_status = upstream_status
        self.content_range = content_range


def _too_large(limit: int) -> UpstreamError:
    return UpstreamError(
        f"The upstream's result is larger than {limit} bytes.",
        code="upstream_too_large",
        should_retry=False,
    )


def _too_slow() -> UpstreamError:
    return connection_error(
        "timeout", f"The upstream's result came with less than 1 kB/s for {_SLOW_S:g} s."
    )


def _broken() -> UpstreamError:
    return connection_error("broken", "The upstream's result broke off. What came is incomplete.")
