"""The tool `fetch`: a URL as text, from public hosts alone.

A name is looked up here, its addresses are checked, and the connection is made to the one that was
checked. So neither a redirect nor a name that has another address the next time leads elsewhere.
"""

from __future__ import annotations

import asyncio
import codecs
import http.client
import socket
import ssl
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from qwen_wsgi import __version__
from qwen_wsgi.tool_runner.fetching import addresses
from qwen_wsgi.tool_runner.results import Result, cut, failed

TOOL: Final = "get"
DESCRIPTION: Final = (
    "Fetches a URL of the public web and returns it as text: of an HTML page its text with its "
    "links, other texts as they are."
)
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "description": "The URL, with http:// or https://."},
        "start": {
            "type": "integer",
            "description": "The character to begin with, to read on in a long text; default 0.",
        },
    },
    "required": ["url"],
}

_PAGE_TEXT: Final = Path(__file__).with_name("page_text.py")
_REDIRECTS: Final = 5
#: Fetches at a time. They have threads of their own: a look-up of a name cannot be ended, and must
#: hold up nothing else.
_THREADS: Final = 32
_CONNECT_S: Final = 10.0
#: Bytes of an answer's body, before and after it is unpacked.
_LARGEST: Final = 5 * 1024 * 1024
_LONGEST_URL: Final = 8192
#: Characters of a text that are given at a time. A model reads on with `start`.
_CHARACTERS: Final = 50_000
_TEXTS: Final = ("text/", "application/json", "application/xml", "application/javascript")
#: Codecs of Python that are no charsets of pages. Some need hours for a text that is meant so.
_NO_CHARSETS: Final = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
)
#: What stands in a URL as it is: all of ASCII but blanks and controls.
_PLAIN: Final = "".join(map(chr, range(33, 127)))

Resolve = Callable[..., list[tuple[Any, ...]]]


#: Behind a text of whose bytes not all were read.
_CUT: Final = f"\n[cut: only the first {_LARGEST // 1024**2} MiB were read]"


class _Refused(Exception):
    """The URL cannot be fetched. The text says why."""


class _Found(NamedTuple):
    """What is behind a URL.

    Attributes:
        page_url: where it was found, if it is a page in HTML; else "".
        is_cut: there is more of it.
    """

    text: str
    page_url: str
    is_cut: bool


class Fetch:
    """Fetches URLs.

    Args:
        hosts: the only ones, with `*.example`; none are all public ones.
        resolve: as `socket.getaddrinfo`.
        refusal: as `addresses.refusal`.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        output_bytes: int,
        resolve: Resolve = socket.getaddrinfo,
        refusal: Callable[..., str] = addresses.refusal,
    ) -> None:
        self._hosts = tuple(hosts)
        self._output_bytes = output_bytes
        self._resolve = resolve
        self._refusal = refusal
        self._threads = ThreadPoolExecutor(_THREADS, "fetch")

    async def call(self, arguments: Mapping[str, Any], *, seconds: float) -> Result:
        """Fetch the URL of a call; what goes wrong is told in the result."""
        url, start = arguments.get("url"), arguments.get("start", 0)
        if not isinstance(url, str) or not isinstance(start, int) or isinstance(start, bool):
            return failed('The arguments must be "url", a text, and perhaps "start", a number.')
        one = _One(self._hosts, self._resolve, self._refusal, seconds)
        try:
            async with asyncio.timeout(seconds):
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._threads, one.fetch, url)
                text = found.text
                if found.page_url:
                    text = await _text_of_page(text, found.page_url)
                text += _CUT * found.is_cut
        except TimeoutError:
            return failed(f"The URL did not answer completely within {seconds:g} seconds.")
        except _Refused as error:
            return failed(str(error))
        finally:
            one.stop()
        return Result(cut(_part(text, max(0, start)), self._output_bytes))


class _One:
    """One fetch, in a thread; `stop` ends its waits from another one."""

    def __init__(
        self,
        hosts: Sequence[str],
        resolve: Resolve,
        refusal: Callable[..., str],
        seconds: float,
    ) -> None:
        self._hosts = hosts
        self._resolve = resolve
        self._refusal = refusal
        self._seconds = seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stopped = False

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def fetch(self, url: str) -> _Found:
        """What is behind a URL.

        Raises:
            _Refused: there is none.
        """
        for _ in range(_REDIRECTS + 1):
            try:
                found = self._ask(url)
            except (OSError, http.client.HTTPException, zlib.error) as error:
                raise _Refused(f"{_shown(url)} cannot be fetched: {_reason(error)}") from None
            if isinstance(found, _Found):
                return found
            url = found
        raise _Refused(f"{_shown(url)}: it was redirected more than {_REDIRECTS} times.")

    def _ask(self, url: str) -> _Found | str:
        """As `fetch`, or where the URL leads on."""
        parts, host, port = _checked(url)
        where = self._address(host, port)
        timeout = min(_CONNECT_S, self._seconds)
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        raw = socket.create_connection(where, timeout)
        try:
            self._hold(raw)
            if parts.scheme == "https":
                raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
                self._hold(raw)
            raw.settimeout(self._seconds)
            connection.sock = raw
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(
                "GET",
                quote(path, safe=_PLAIN),
                headers={
                    "Host": _host_header(parts.scheme, host, port),
                    "User-Agent": f"qwen-proxy/{__version__} (fetch)",
                    "Accept": "text/html, text/*, application/json, */*;q=0.1",
                    "Accept-Encoding": "gzip",
                    "Connection": "close",
                },
            )
            response = connection.getresponse()
            to = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and to:
                return _led_on(url, to)
            if response.status != 200:
                raise _Refused(f"{_shown(url)} answered with HTTP {response.status}.")
            return _found(response, url)
        finally:
            connection.close()
            raw.close()

    def _hold(self, raw: socket.socket) -> None:
        with self._lock:
            if self._stopped:
                raise OSError("it was stopped")
            self._socket = raw

    def _address(self, host: str, port: int) -> tuple[str, int]:
        """An address of a host that may be connected to.

        Raises:
            _Refused: it has none.
        """
        named = addresses.is_named(host, self._hosts)
        if self._hosts and not named:
            raise _Refused(
                f"{host} may not be fetched: this server reads only from "
                f"{', '.join(self._hosts[:20])}."
            )
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _Refused(f"{host} is not known: no address was found.") from None
        why = "has no address"
        for _, _, _, _, where in found:
            why = self._refusal(str(where[0]), private=named)
            if not why:
                return str(where[0]), port
        raise _Refused(f"{host} may not be fetched: its address {why}.")


def _checked(url: str) -> tuple[Any, str, int]:
    """The parts of a URL.

    Raises:
        _Refused: it is none that may be fetched.
    """
    if len(url) > _LONGEST_URL or any(each <= " " or "\ud800" <= each <= "\udfff" for each in url):
        raise _Refused("The URL is too long, or has characters that no URL may have.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _Refused("The URL cannot be understood.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _Refused("The URL must begin with http:// or https:// and a host.")
    if parts.username is not None or parts.password is not None:
        raise _Refused("The URL must not have a user name or a password in it.")
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise _Refused("The URL's host cannot be understood.") from None
    return parts, ascii_host, port or (443 if parts.scheme == "https" else 80)


def _found(response: http.client.HTTPResponse, url: str) -> _Found:
    """The text of an answer.

    Raises:
        _Refused: it is none.
    """
    kind = response.headers.get_content_type()
    is_text = kind.startswith(_TEXTS) or kind.endswith(("+json", "+xml"))
    if not is_text:
        raise _Refused(f"{_shown(url)} is no text but {kind}.")
    data = response.read(_LARGEST + 1)
    coding = response.headers.get("Content-Encoding", "identity").lower()
    if coding in ("gzip", "x-gzip"):
        data = zlib.decompressobj(wbits=31).decompress(data, _LARGEST + 1)
    elif coding not in ("identity", ""):
        raise _Refused(f"{_shown(url)} is packed in a way that was not asked for.")
    is_cut, data = len(data) > _LARGEST, data[:_LARGEST]
    text = _decoded(data, response.headers.get_content_charset() or "utf-8")
    is_page = kind in ("text/html", "application/xhtml+xml")
    return _Found(text, url if is_page else "", is_cut)


def _decoded(data: bytes, charset: str) -> str:
    """The text of some bytes: as UTF-8 where the charset is none."""
    with suppress(LookupError, ValueError):
        if codecs.lookup(charset).name not in _NO_CHARSETS:
            return data.decode(charset, errors="replace")
    return data.decode(errors="replace")


async def _text_of_page(page: str, url: str) -> str:
    """The text of a page, from a process that is bounded.

    Raises:
        _Refused: it has none that can be found in reasonable time.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_PAGE_TEXT), url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
    )
    try:
        text, _ = await process.communicate(page.encode(errors="replace"))
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise _Refused(f"{_shown(url)} is a page that cannot be read as text.")
    return text.decode(errors="replace")


def _led_on(url: str, to: str) -> str:
    """Where a redirect leads.

    Raises:
        _Refused: nowhere.
    """
    try:
        return urljoin(url, to)
    except ValueError:
        raise _Refused(f"{_shown(url)} leads to an address that cannot be understood.") from None


def _part(text: str, start: int) -> str:
    rest = text[start : start + _CHARACTERS]
    if start + _CHARACTERS < len(text):
        rest += (
            f"\n[characters {start} to {start + _CHARACTERS} of {len(text)}; the rest: call "
            f"again with start={start + _CHARACTERS}]"
        )
    return rest or "[no text]"


def _host_header(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port == (443 if scheme == "https" else 80) else f"{shown}:{port}"


def _shown(url: str) -> str:
    return url if len(url) <= 200 else url[:200] + "…"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time."
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted ({error.verify_message})."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return f"{type(error).__name__}."
