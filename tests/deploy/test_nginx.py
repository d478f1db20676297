"""The shipped nginx site: with a real nginx, in front of a real gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import servers
from tests.kit.servers import Server, StartServer, short_directory

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not servers.nginx(), reason="nginx is not installed"),
]

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Server, Server, Path]]:
    """nginx, gunicorn on a unix socket as the unit starts it, and their directory."""
    with (
        short_directory() as directory,
        servers.serving(servers.start_gunicorn(Path(directory), unix=True)) as upstream,
        servers.start_nginx(Path(directory), upstream.address) as front,
    ):
        yield front, upstream, Path(directory)


@pytest.fixture
def front(shared: tuple[Server, Server, Path]) -> Server:
    """nginx in front of gunicorn, for tests that leave both as they are."""
    return shared[0]


@pytest.fixture
def upstream(shared: tuple[Server, Server, Path]) -> Server:
    """The gunicorn behind `front`."""
    return shared[1]


def check(configuration: Path) -> str:
    """What `nginx -t` says; empty when it has nothing to say."""
    command = [servers.nginx(), "-t", "-q", "-e", "stderr", "-c", str(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


@contextlib.contextmanager
def answer_to(
    front: Server, method: str, path: str, body: bytes | None = None, *, encoding: str = "identity"
) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(front.connect()) as client:
        client.request(method, path, body, {"Accept-Encoding": encoding})
        yield client.getresponse()


def assert_openai_error(
    answer: http.client.HTTPResponse, status: int, code: str, type: str
) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.read())["error"]
    assert (error["code"], error["type"], error["param"]) == (code, type, None)
    assert error["message"]
    assert answer.headers["x-request-id"]


def test_nginx_accepts_the_site(place: Path) -> None:
    assert check(servers.nginx_configuration(place, str(place / "http.sock"), 8099)) == ""


def test_nginx_accepts_the_site_with_its_tls_lines(place: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"]
        + ["-keyout", str(place / "privkey.pem"), "-out", str(place / "fullchain.pem")],
        check=True,
        capture_output=True,
        timeout=30,
    )

    def with_tls(site: str) -> str:
        assert "#listen 443 ssl;" in site
        for name in ("listen", "ssl_"):
            site = site.replace(f"    #{name}", f"    {name}")
        return (
            site.replace("/etc/ssl/qwen-proxy/", f"{place}/")
            .replace(":443 ", ":8443 ")
            .replace("listen 443 ", "listen 127.0.0.1:8443 ")
        )

    assert check(servers.nginx_configuration(place, "http.sock", 8099, with_tls)) == ""


def test_what_the_application_is_told_about_the_client(front: Server) -> None:
    _, body = front.get(
        "/environ",
        **{
            "Host": "qwen.lan:8080",
            "X-Forwarded-For": "10.1.2.3",
            "X-Forwarded-Proto": "https",
            "Forwarded": "for=10.1.2.3",
            "X-Request-Id": "client-chosen-1",
        },
    )
    environ = json.loads(body)
    assert environ["HTTP_HOST"] == "qwen.lan:8080"
    assert environ["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
    assert environ["HTTP_X_FORWARDED_PROTO"] == "http"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["HTTP_X_REQUEST_ID"] == "client-chosen-1"
    assert "HTTP_FORWARDED" not in environ
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"


@pytest.mark.parametrize("offered", ["", "two words", 'quo"te', "x" * 129])
def test_an_unfit_request_id_is_replaced(front: Server, offered: str) -> None:
    _, body = front.get("/environ", **({"X-Request-Id": offered} if offered else {}))
    made = json.loads(body)["HTTP_X_REQUEST_ID"]
    assert len(made) == 32
    assert int(made, 16)


def test_connections_to_the_proxy_are_kept(front: Server, upstream: Server) -> None:
    _, body = front.get("/environ")
    assert "HTTP_CONNECTION" not in json.loads(body)
    before = open_files(upstream)
    for _ in range(20):
        front.get("/")
    assert open_files(upstream) <= before + 1


def open_files(server: Server) -> int:
    (worker,) = servers.workers(server)
    return len(list(Path(f"/proc/{worker}/fd").iterdir()))


def test_chunks_pass_at_once_and_uncompressed(front: Server) -> None:
    with answer_to(front, "GET", "/stream?chunks=3&every=0.4", encoding="gzip") as answer:
        assert answer.headers["content-encoding"] is None
        times = [moment for moment, _ in servers.chunks(answer)]
    gaps = [late - early for early, late in zip(times, times[1:], strict=False)]
    # Buffered, they would all come together at the end.
    assert all(gap > 0.2 for gap in gaps), gaps


def test_a_client_that_hangs_up_ends_the_call(front: Server, upstream: Server) -> None:
    with answer_to(front, "GET", "/stream?chunks=1000&every=0.05") as answer:
        assert answer.readline()
    upstream.wait_for("stream closed", within_s=2)


def test_a_large_body_arrives_and_touches_no_disk(
    front: Server, shared: tuple[Server, Server, Path]
) -> None:
    with answer_to(front, "POST", "/read", b"x" * (64 * MIB)) as answer:
        assert json.loads(answer.read()) == 64 * MIB
    assert not any((shared[2] / "client_body").rglob("*"))


def test_a_body_without_a_length_arrives(front: Server) -> None:
    with contextlib.closing(front.connect()) as client:
        client.request("POST", "/read", iter([b"x" * 1000] * 1000), encode_chunked=True)
        assert json.loads(client.getresponse().read()) == 1_000_000


@pytest.mark.parametrize("status", [401, 413, 502])
def test_errors_of_the_application_pass_untouched(front: Server, status: int) -> None:
    # 70 MiB is over the application's limit and below nginx': the application does not read it.
    body = b"x" * (70 * MIB if status == 413 else MIB)
    with answer_to(front, "POST", f"/refuse?status={status}", body) as answer:
        assert answer.status == status
        assert json.loads(answer.read())["error"]["message"] == "by the application"


def test_a_body_that_is_far_too_large_is_refused_before_it_is_sent(front: Server) -> None:
    with contextlib.closing(front.connect()) as client:
        client.putrequest("POST", "/read")
        client.putheader("Content-Length", str(81 * MIB))
        client.putheader("X-Request-Id", "the-clients-own")
        client.endheaders()
        answer = client.getresponse()
        assert answer.headers["x-request-id"] == "the-clients-own"
        assert_openai_error(answer, 413, "request_too_large", "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/files", "/files", "/v1/v1/files/"])
def test_an_upload_may_be_larger_and_touches_no_disk(
    front: Server, shared: tuple[Server, Server, Path], path: str
) -> None:
    with answer_to(front, "POST", path, b"x" * (90 * MIB)) as answer:
        assert json.loads(answer.read()) == 90 * MIB
    assert not any((shared[2] / "client_body").rglob("*"))
    with answer_to(front, "GET", "/v1/files/a/content") as answer:
        assert answer.status == 200


def test_an_upload_passes_on_while_it_comes(front: Server, upstream: Server) -> None:
    with contextlib.closing(front.connect()) as client:
        client.putrequest("POST", "/v1/files")
        client.putheader("Content-Length", str(2 * MIB))
        client.endheaders()
        client.send(b"x" * MIB)
        upstream.wait_for("files: the first byte", within_s=5)
        client.send(b"x" * MIB)
        assert json.loads(client.getresponse().read()) == 2 * MIB


def test_a_proxy_that_is_stopped_is_told_as_such(nginx: StartServer, place: Path) -> None:
    front = nginx(str(place / "http.sock"))
    with answer_to(front, "POST", "/v1/chat/completions", b"{}") as answer:
        assert answer.headers["retry-after"] == "2"
        assert_openai_error(answer, 502, "proxy_unavailable", "server_error")


def test_a_proxy_that_does_not_answer_is_told_as_such(nginx: StartServer, upstream: Server) -> None:
    def impatient(site: str) -> str:
        assert "proxy_read_timeout    3600s;" in site
        return site.replace("proxy_read_timeout    3600s;", "proxy_read_timeout 300ms;")

    front = nginx(upstream.address, impatient)
    with answer_to(front, "GET", "/slow?s=2") as answer:
        assert_openai_error(answer, 504, "proxy_timeout", "server_error")


def test_a_reload_of_the_proxy_is_not_seen_by_clients(
    nginx: StartServer, gunicorn: StartServer
) -> None:
    upstream = gunicorn(unix=True)
    front = nginx(upstream.address)
    old = servers.workers(upstream)
    failures: list[object] = []
    stop = threading.Event()

    def call_again_and_again() -> None:
        with contextlib.closing(front.connect()) as client:
            while not stop.is_set():
                client.request("POST", "/read", b"{}")
                answer = client.getresponse()
                if (answer.status, answer.read()) != (200, b"2"):
                    failures.append(answer.status)

    clients = [threading.Thread(target=call_again_and_again) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        time.sleep(0.3)
        upstream.send(signal.SIGHUP)
        servers.wait_until(
            lambda: servers.workers(upstream) and not servers.workers(upstream) & old, "new worker"
        )
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert failures == []


def test_the_log_holds_the_request_id_and_no_query(
    front: Server, shared: tuple[Server, Server, Path]
) -> None:
    front.get("/environ?api_key=hidden-value", **{"X-Request-Id": "to-be-found"})
    log = shared[2] / "qwen-proxy.access.log"
    (line,) = (line for line in log.read_text().splitlines() if "to-be-found" in line)
    assert '"GET /environ HTTP/1.1" 200' in line
    assert "hidden-value" not in log.read_text()


def test_a_raw_socket_sees_no_version(front: Server) -> None:
    assert isinstance(front.address, int)
    with socket.create_connection(("127.0.0.1", front.address), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        while data := client.recv(65536):
            received += data
    assert b"Server: nginx\r\n" in received
