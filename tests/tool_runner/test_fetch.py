"""The tool `fetch`: where it connects to, and what it gives back."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_wsgi.tool_runner.fetching.addresses import is_named, refusal
from qwen_wsgi.tool_runner.fetching.fetch import Fetch
from qwen_wsgi.tool_runner.fetching.page_text import text_of
from qwen_wsgi.tool_runner.results import Result

# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"),
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fc00::1"),
        *("169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255"),
        # IPv4 addresses in IPv6's clothes: translated, 6to4, Teredo.
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1"),
        *("2001:0:4136:e378:8000:63bf:80ff:fffe", "::ffff:10.0.0.1", "192.0.0.8", "no address"),
        *("fec0::1", "192.88.99.1", "::7f00:1"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert refusal(address, is_here=lambda host: False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "1.1.1.1"])
def test_a_public_one_is_not_unless_it_is_this_machine(address: str) -> None:
    assert not refusal(address, is_here=lambda host: False)
    assert refusal(address, is_here=lambda host: True) == "is this machine"


def test_a_private_one_may_be_named_but_never_this_machine_or_its_link() -> None:
    def allowed(address: str) -> bool:
        return not refusal(address, private=True, is_here=lambda host: False)

    assert allowed("192.168.1.1")
    assert allowed("fd00::1")
    assert not any(map(allowed, ("127.0.0.1", "169.254.169.254", "fe80::1", "64:ff9b::7f00:1")))


def test_names_of_hosts() -> None:
    hosts = ("docs.example", "*.b.example")

    assert is_named("Docs.Example.", hosts)
    assert is_named("a.b.example", hosts)
    assert not is_named("b.example", hosts)
    assert not is_named("docs.example.evil", hosts)


# --- a real server -------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self) -> None:
        kind, body, status = "text/html; charset=utf-8", b"", 200
        extra: dict[str, str] = {}
        if self.path == "/page":
            body = "<title>T</title><p>Grüße <a href='/x'>hier</a><script>no()</script>".encode()
        elif self.path == "/hostile":
            body = b"<![" * 1_000_000
        elif self.path == "/packed":
            body, extra = gzip.compress(b"x" * 1000), {"Content-Encoding": "gzip"}
        elif self.path == "/bomb":
            body, extra = gzip.compress(bytes(64 << 20)), {"Content-Encoding": "gzip"}
            kind = "text/plain"
        elif self.path.startswith("/links"):
            body = b"<a href=y></a>" * 10_000
        elif self.path.startswith("/in?"):
            kind = "text/plain; charset=" + self.path.partition("?")[2]
            body = b"a" * 500_000 + b"-" + b"9" * 500_000
        elif self.path == "/long":
            kind, body = "text/plain", b"0123456789" * 6000
        elif self.path == "/large":
            body = b"<p>first</p>" + b"<!---->" * 800_000
        elif self.path == "/picture":
            kind, body = "image/png", b"PNG"
        elif self.path.startswith("/to?"):
            status, extra = 302, {"Location": self.path.partition("?")[2]}
        elif self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.flush()
            self.rfile.read(1)  # until the other side closes
            return
        else:
            status = 404
        self.send_response(status)
        for name, value in {"Content-Type": kind, **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


NAMES = {"public.example": "127.0.0.1", "intranet.example": "10.0.0.1"}


def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
    if host not in NAMES:
        raise socket.gaierror(-2, "Name or service not known")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (NAMES[host], port))]


def fetch(url: object, *, seconds: float = 5.0, hosts: tuple[str, ...] = (), **more: Any) -> Result:
    """Fetch; the loopback address plays a public one."""

    def refused(address: str, *, private: bool) -> str:
        return "" if address == "127.0.0.1" else refusal(address, private=private)

    one = Fetch(hosts, output_bytes=100_000, resolve=resolve, refusal=refused)
    return asyncio.run(one.call({"url": url, **more}, seconds=seconds))


def test_a_page_is_its_text(port: int) -> None:
    result = fetch(f"http://public.example:{port}/page")

    link = f"http://public.example:{port}/x"
    assert result == Result(f"# T\n\nGrüße hier ({link})")


def test_a_page_that_keeps_the_parser_busy_is_given_up(port: int) -> None:
    """How long it takes depends on Python's version; the bound does not."""
    result = fetch(f"http://public.example:{port}/hostile", seconds=3)

    assert not result.is_error or "3 seconds" in result.text or "cannot be read" in result.text


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "hex", "nonsense"])
def test_a_charset_that_is_none_is_passed_over(port: int, charset: str) -> None:
    """Python has codecs that refuse every text, or need hours for some."""
    assert fetch(f"http://public.example:{port}/in?{charset}").text.startswith("aaaa")


def test_the_text_of_a_page_is_bounded_however_long_its_links_become(port: int) -> None:
    """10,000 links of 14 bytes, each of which becomes a URL of 8,000."""
    folder = "x" * 8000

    text = fetch(f"http://public.example:{port}/links{folder}/", start=16 << 20, seconds=20).text

    assert text == "\n[cut: the text of the page is longer]"


def test_a_long_text_is_read_in_parts(port: int) -> None:
    first = fetch(f"http://public.example:{port}/long").text
    second = fetch(f"http://public.example:{port}/long", start=50_000).text

    assert first.startswith("0123456789")
    assert "start=50000" in first
    assert second == "0123456789" * 1000


def test_a_page_of_which_not_all_was_read_says_so(port: int) -> None:
    text = fetch(f"http://public.example:{port}/large", seconds=20).text

    assert text.startswith("first\n")
    assert text.endswith("\n[cut: only the first 5 MiB were read]")


def test_a_packed_text_is_unpacked_within_bounds(port: int) -> None:
    assert fetch(f"http://public.example:{port}/packed").text == "x" * 1000
    assert len(fetch(f"http://public.example:{port}/bomb").text) < 60_000


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("http://intranet.example/", "intranet.example may not be fetched: its address is no pub"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://169.254.169.254/latest", "169.254.169.254 is not known"),
        ("/404", "HTTP 404"),
        ("http://[", "leads to an address that cannot be understood"),
    ],
)
def test_a_redirect_leads_nowhere_else(port: int, to: str, told: str) -> None:
    result = fetch(f"http://public.example:{port}/to?{to}")

    assert result.is_error
    assert told in result.text


def test_redirects_are_counted(port: int) -> None:
    to = "/to?" * 8 + "/page"

    assert "more than 5 times" in fetch(f"http://public.example:{port}{to}").text


def test_the_connection_goes_to_the_address_that_was_checked(port: int) -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        where = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))]

    one = Fetch((), output_bytes=1000, resolve=rebinding, refusal=lambda address, private: "")
    result = asyncio.run(one.call({"url": f"http://x.example:{port}/page"}, seconds=5))

    assert result.text.startswith("# T")
    assert asked == ["x.example"]


def test_only_the_named_hosts_where_some_are_named(port: int) -> None:
    url = f"http://public.example:{port}/page"

    assert not fetch(url, hosts=("*.example",)).is_error
    assert "reads only from docs.example" in fetch(url, hosts=("docs.example",)).text


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (3, '"url"'),
        ("ftp://public.example/", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://u:p@public.example/", "password"),
        ("http://public.example/\r\nX: y", "characters"),
        ("http://[::1", "cannot be understood"),
        ("http://public.example/\ud800", "characters"),
        ("http://nowhere.example/", "is not known"),
    ],
)
def test_what_is_no_url_is_told(url: object, told: str) -> None:
    result = fetch(url)

    assert result.is_error
    assert told in result.text


def test_a_picture_is_no_text(port: int) -> None:
    assert "no text but image/png" in fetch(f"http://public.example:{port}/picture").text


def test_a_host_that_says_nothing_is_given_up(port: int) -> None:
    assert "within 0.3 seconds" in fetch(f"http://public.example:{port}/slow", seconds=0.3).text


# --- pages ---------------------------------------------------------------------------------------


def test_headings_lists_and_tables() -> None:
    page = """<html><head><title>A  title</title><style>x</style></head><body>
    <h2>Head</h2><ul><li>one<li>two</ul><table><tr><td>a</td><td>b</td></tr></table>
    <svg><text>no</text></svg>end &amp; more</body></html>"""

    text = text_of(page, "http://a.example/")

    assert text == "# A title\n\n## Head\n\n- one\n- two\n\n| a | b\n\nend & more"


def test_what_is_skipped_ends_where_it_does() -> None:
    page = "<svg><svg><p>no</svg>no</svg>yes<svg></p>no"

    assert text_of(page, "http://a.example/") == "yes"
    many = "<svg>" * 100_000 + "</p>" * 100_000
    assert text_of(many, "http://a.example/") == ""


@pytest.mark.parametrize("page", ["<script>" * 50_000, "<a href=x>" * 50_000, "<" * 50_000, "</p"])
def test_a_hostile_page_breaks_nothing(page: str) -> None:
    assert isinstance(text_of(page, "http://a.example/"), str)
