"""The server itself: HTTP, disconnects, the log, control calls, and life as a program."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.control import BadControl
from tests.sandbox.support import (
    KEY,
    ask,
    call,
    chat_bytes,
    post,
    raw_request,
    read_all,
    read_until,
    refresh,
    request_body,
    stream,
)

ROOT = Path(__file__).parents[2]
# Time for the sandbox to notice a disconnect: well under a millisecond, but machines are busy.
NOTICED_S = 1.0


# --- disconnects ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "events"),
    [
        pytest.param("slow-headers=60", 0, id="before the headers"),
        pytest.param("hang", 0, id="while it hangs"),
        pytest.param("slow-first=60", 0, id="before the first event"),
        pytest.param("interval=60", 1, id="between two events"),
        pytest.param("stall-after=3", 3, id="stalled"),
        pytest.param("stall-after=3, gzip", 3, id="stalled and compressed"),
        pytest.param("chunks=1000000, interval=0", 3, id="while it sends"),
    ],
)
def test_a_disconnect_is_noticed_at_once(sandbox: Sandbox, spec: str, events: int) -> None:
    with raw_request(sandbox, chat_bytes(spec)) as sock:
        assert sandbox.wait_until(lambda: sandbox.state()["open_streams"] == 1)
        assert sandbox.wait_until(lambda: sandbox.chats[0].events >= events)
        if events:
            read_until(sock, b"\r\n\r\n")
        left_s = time.monotonic()
    (record,) = sandbox.settle()

    assert record.outcome == "client_gone"
    assert record.gone_s is not None
    assert -0.01 < record.gone_s - left_s < NOTICED_S
    assert sandbox.state()["open_streams"] == 0


def test_a_reset_by_the_client_is_a_disconnect_too(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("stall-after=1")) as sock:
        read_until(sock, b"data: ")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert sandbox.settle()[-1].outcome == "client_gone"


def test_a_disconnect_is_noticed_on_a_call_that_is_not_streamed(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("slow-headers=60", stream=False)):
        assert sandbox.wait_until(lambda: sandbox.state()["open_chats"] == 1)
    record = sandbox.settle()[-1]

    assert (record.outcome, record.first_byte_s) == ("client_gone", None)


def test_a_client_that_stays_is_not_taken_for_gone(sandbox: Sandbox) -> None:
    """A pipelined request must not look like a disconnect, and is answered afterwards."""
    with raw_request(sandbox, chat_bytes("interval=0.005") + chat_bytes("close")) as sock:
        data = read_all(sock)

    assert data.count(b"data: [DONE]") == 2
    assert [record.outcome for record in sandbox.settle()] == ["complete", "complete"]


# --- HTTP ----------------------------------------------------------------------------------------


def test_a_connection_is_kept_for_many_requests(sandbox: Sandbox) -> None:
    with raw_request(sandbox, b"") as sock:
        for _ in range(3):
            sock.sendall(chat_bytes())
            assert read_until(sock, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert sandbox.state()["connections"] == 1


def test_http10_gets_an_answer_without_chunks(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes(version="HTTP/1.0")) as sock:
        data = read_all(sock)

    assert b"transfer-encoding" not in data
    assert data.endswith(b"data: [DONE]\n\n")


def test_request_bodies_in_chunks_and_with_expect(sandbox: Sandbox) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"
        "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    body = json.dumps(request_body()).encode()
    with raw_request(sandbox, head.encode()) as sock:
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for piece in (body[:7], body[7:]):
            sock.sendall(b"%x;x=y\r\n%s\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\nTrailer: 1\r\n\r\n")
        assert b"[sandbox] You said: hello" in read_all(sock)
    assert sandbox.chats[-1].body == body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_rubbish_is_refused(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str], data: bytes, status: int
) -> None:
    with raw_request(sandbox, data) as sock:
        assert sock.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
    assert ask(sandbox).status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"],
)
def test_half_a_request_does_no_harm(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str], data: bytes
) -> None:
    with raw_request(sandbox, data):
        pass
    assert ask(sandbox).status == 200
    assert capfd.readouterr() == ("", "")


def test_an_idle_connection_is_closed() -> None:
    with Sandbox(keep_alive_s=0.02) as sandbox, raw_request(sandbox, b"") as sock:
        assert sock.recv(1) == b""


def test_unknown_routes(sandbox: Sandbox) -> None:
    for method, path in (("POST", "/v2/chat/completions"), ("GET", "/v1/chat/completions")):
        answer = call(sandbox, method, path)
        assert (answer.status, answer.body) == (404, b"")
    assert call(sandbox, "GET", "/_sandbox/nothing").status == 404
    assert b"[sandbox]" in call(sandbox, "GET", "/").body


# --- log -----------------------------------------------------------------------------------------


def test_the_log_has_the_exact_bytes_and_no_credential(sandbox: Sandbox) -> None:
    body = b'{ "model":"qwen-plus" ,"messages":[{"role":"user","content":"\xe4\xb8\x96"}]}\n'
    headers = {"Authorization": f"Bearer {KEY}", "X-Custom": "a", "Cookie": "session=secret-1234"}
    call(sandbox, "POST", "/v1/chat/completions", body, headers)
    refresh(sandbox, sandbox.issue()["refresh_token"])
    sandbox.settle()
    text = json.dumps(sandbox.state())

    record = sandbox.chats[-1]
    assert record.body == body
    assert record.headers["x-custom"] == "a"
    assert record.headers["authorization"] == "…" + KEY[-4:]
    assert record.key_ends == KEY[-4:]
    assert (record.status, record.outcome, record.model) == (200, "complete", "qwen-plus")
    assert KEY not in text
    assert "secret-1234" not in text
    assert "sandbox-rt-" not in text
    assert "sandbox-at-" not in text


def test_bodies_that_are_no_text_are_logged_as_base64(sandbox: Sandbox) -> None:
    call(sandbox, "POST", "/v1/chat/completions", b"\xff\x00")

    assert sandbox.state()["log"][-1]["body_base64"] == "/wA="


def test_the_log_is_bounded(sandbox: Sandbox) -> None:
    with raw_request(sandbox, b"") as sock:
        sock.sendall(b"GET /nothing HTTP/1.1\r\n\r\n" * 1004 + b"GET /x HTTP/1.0\r\n\r\n")
        read_all(sock)
    sandbox.settle()

    assert len(sandbox.requests) == 1000
    assert sandbox.requests[-1].seq == 1005
    assert sandbox.state()["requests"] == {"unknown": 1005}


def test_big_bodies_are_forgotten_first(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_wsgi.sandbox.journal.MAX_BODY_BYTES", 1000)
    ask(sandbox, text="x" * 600)
    ask(sandbox, text="y" * 600)

    first, second = sandbox.chats
    assert first.body is None
    assert first.body_bytes > 600
    assert second.body is not None


def test_the_state_counts(sandbox: Sandbox) -> None:
    ask(sandbox)
    stream(sandbox, "throttle")
    sandbox.settle()
    state = call(sandbox, "GET", "/_sandbox/state").json()

    assert state["requests"] == {"chat": 2}
    assert state["outcomes"] == {"complete": 1, "error": 1}
    assert state["statuses"] == {"200": 1, "429": 1}
    assert [entry["stream"] for entry in state["log"]] == [False, True]
    assert state["log"][1]["spec"] == "throttle"
    assert call(sandbox, "POST", "/_sandbox/reset").status == 200
    assert sandbox.state()["requests"] == {}


# --- control -------------------------------------------------------------------------------------


def control(sandbox: Sandbox, payload: Any) -> Any:
    answer = call(sandbox, "POST", "/_sandbox/control", json.dumps(payload).encode())
    assert answer.status == 200, answer.body
    return answer.json()


def test_faults_for_the_next_requests(sandbox: Sandbox) -> None:
    control(sandbox, {"next": ["throttle", {"spec": "denied", "count": 2}]})

    assert [ask(sandbox).status for _ in range(4)] == [429, 403, 403, 200]


def test_rules_choose_by_route_model_and_key(sandbox: Sandbox) -> None:
    rules = [
        {"spec": "throttle", "model": "qwen-max", "count": None},
        {"spec": "overload", "key_ends": "-two", "count": None, "route": None},
        {"spec": "html-502", "route": "embeddings"},
    ]
    control(sandbox, {"next": rules})

    def with_key(key: str) -> int:
        body = request_body()
        return post(sandbox, "chat/completions", body, authorization=f"Bearer {key}").status

    embedding = {"model": "text-embedding-v4", "input": "x"}
    assert (ask(sandbox).status, ask(sandbox, model="qwen-max").status) == (200, 429)
    assert (with_key("key-one"), with_key("key-two")) == (200, 503)
    assert [post(sandbox, "embeddings", embedding).status for _ in range(2)] == [502, 200]
    control(sandbox, {"clear_rules": True})
    assert with_key("key-two") == 200


def test_lasting_faults_per_route(sandbox: Sandbox) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    control(sandbox, {"faults": {"models": "html-502", "chat": "think"}})

    assert [call(sandbox, "GET", "/v1/models", None, headers).status for _ in range(2)] == [502] * 2
    message = ask(sandbox, "text=x").json()["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"] == "x"
    control(sandbox, {"clear_faults": True})
    assert call(sandbox, "GET", "/v1/models", None, headers).status == 200


def test_a_limit_on_requests_at_the_same_time(sandbox: Sandbox) -> None:
    control(sandbox, {"max_concurrent": 1})
    with raw_request(sandbox, chat_bytes("stall-after=1")) as sock:
        read_until(sock, b"data: ")
        assert ask(sandbox).message == "concurrency allocated quota exceeded"
    sandbox.settle()
    assert ask(sandbox).status == 200


def test_an_interval_for_people() -> None:
    with Sandbox(chunk_interval_s=0.01) as sandbox:
        started_s = time.monotonic()
        stream(sandbox, "chunks=5")
        assert time.monotonic() - started_s >= 0.05
        sandbox.control(interval_s=0)
        assert sandbox.state()["control"]["interval_s"] == 0
        sandbox.reset()
        assert sandbox.state()["control"]["interval_s"] == 0.01


def test_models_can_be_given() -> None:
    with Sandbox(models=["only"]) as sandbox:
        headers = {"authorization": f"Bearer {KEY}"}
        listed = call(sandbox, "GET", "/v1/models", None, headers).json()["data"]
        assert [entry["id"] for entry in listed] == ["only"]


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {"nonsense": 1},
        {"models": "x"},
        {"strict_models": 1},
        {"max_concurrent": -1},
        {"slow_down_polls": None},
        {"interval_s": "1"},
        {"interval_s": True},
        {"approve": 5},
        {"faults": 5},
        {"faults": {"nowhere": "throttle"}},
        {"faults": "nonsense"},
        {"faults": "error=nonsense"},
        {"next": "error-frame-after, error=nonsense"},
        {"next": 5},
        {"next": {"spec": "throttle", "color": "red"}},
        {"next": {"spec": "throttle", "route": "nowhere"}},
        {"next": {"spec": "throttle", "count": "x"}},
        {"revoke_all": "yes"},
    ],
)
def test_a_control_call_that_is_not_understood_changes_nothing(
    sandbox: Sandbox, payload: Any
) -> None:
    before = sandbox.state()["control"]
    both = {"strict_models": True, **payload} if isinstance(payload, dict) else payload
    if payload == {"strict_models": 1}:
        both = payload
    answer = call(sandbox, "POST", "/_sandbox/control", json.dumps(both).encode())

    assert answer.status == 400
    assert answer.json()["error"].startswith("[sandbox]")
    assert sandbox.state()["control"] == before
    if isinstance(payload, dict):
        with pytest.raises(BadControl):
            sandbox.control(payload)


def test_a_control_call_must_be_json(sandbox: Sandbox) -> None:
    assert call(sandbox, "POST", "/_sandbox/control", b"{").status == 400


def test_every_setting_of_the_login_can_be_set_and_is_shown(sandbox: Sandbox) -> None:
    described = sandbox.state()["control"]
    same = {key: value for key, value in described.items() if key not in ("rules", "invalid_keys")}

    assert sandbox.control(same) == {}
    assert sandbox.state()["control"] == described
    assert sandbox.control(issue="some-client")["issue"]["refresh_token"]


# --- life ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com", ""])
def test_only_loopback_can_be_bound(host: str) -> None:
    with pytest.raises(ValueError, match="only on loopback"):
        Sandbox(host=host)


def test_an_outage_and_the_return_on_the_same_port() -> None:
    sandbox = Sandbox()
    with sandbox:
        origin = sandbox.origin
        assert ask(sandbox).status == 200
    with pytest.raises(ConnectionRefusedError):
        ask(sandbox)
    with sandbox:
        assert sandbox.origin == origin
        assert sandbox.base_url == origin + "/compatible-mode/v1"
        assert ask(sandbox).status == 200
        taken = Sandbox(port=int(origin.rpartition(":")[2]))
        with pytest.raises(OSError, match="in use"):
            taken.start()
    sandbox.stop()


def test_stopping_ends_what_is_in_progress() -> None:
    before = threading.active_count()
    sandbox = Sandbox().start()
    with raw_request(sandbox, chat_bytes("hang")) as sock:
        assert sandbox.wait_until(lambda: sandbox.state()["open_chats"] == 1)
        sandbox.stop()
        assert sock.recv(1) == b""
    assert sandbox.chats[-1].outcome == "stopped"
    assert threading.active_count() == before


def test_many_streams_at_once(sandbox: Sandbox) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(stream(sandbox, "interval=0.002").text))
        for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert texts == ["[sandbox] You said: hello"] * 50


def run_program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "qwen_wsgi.sandbox", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **options)


def origin_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("sandbox listening on http://127.0.0.1:")
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_serves_until_a_signal(number: signal.Signals) -> None:
    with run_program(stderr=subprocess.PIPE) as process:
        host, port = origin_of(process).removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(chat_bytes("close"))
            assert b"[DONE]" in read_all(sock)
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def test_the_program_ends_with_its_parent() -> None:
    with run_program("--exit-on-stdin-eof", stdin=subprocess.PIPE) as process:
        origin_of(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_the_program_refuses_other_addresses_and_taken_ports(sandbox: Sandbox) -> None:
    port = sandbox.origin.rpartition(":")[2]
    for arguments, status in ((["--host", "0.0.0.0"], 2), (["--port", port], 1)):
        with run_program(*arguments, stderr=subprocess.PIPE) as process:
            output, errors = process.communicate(timeout=10)
        assert process.returncode == status
        assert output == ""
        assert len(errors.splitlines()) == 1


GEVENT = """
import {first}
import {second}
from gevent import monkey; monkey.patch_all()
import gevent, http.client, json, socket, time
from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import ask, chat_bytes, raw_request, read_until, stream

with Sandbox() as sandbox:
    started = time.monotonic()
    jobs = [gevent.spawn(stream, sandbox, "slow-first=0.2, interval=0.01") for _ in range(20)]
    gevent.joinall(jobs, raise_error=True)
    assert all(job.value.payloads[-1] == "[DONE]" for job in jobs)
    assert time.monotonic() - started < 2, "not concurrent"
    assert ask(sandbox).status == 200
    for spec in ("slow-first=60", "stall-after=2", "hang", "chunks=1000000"):
        with raw_request(sandbox, chat_bytes(spec)) as sock:
            assert sandbox.wait_until(lambda: sandbox.state()["open_streams"] == 1)
            gevent.sleep(0.01)
            left = time.monotonic()
        record = sandbox.settle()[-1]
        assert record.outcome == "client_gone", record
        assert record.gone_s - left < 1, record
    with raw_request(sandbox, chat_bytes("hang")) as sock:
        assert sandbox.wait_until(lambda: sandbox.state()["open_streams"] == 1)
        sandbox.stop()
        assert sock.recv(1) == b""
    assert sandbox.state()["internal_errors"] == 0, sandbox.state()["last_failure"]
print("fine")
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("gevent", "sys", id="imported after the patch"),
        pytest.param("gevent", "qwen_wsgi.sandbox", id="imported before the patch"),
    ],
)
def test_it_works_in_a_gevent_process(first: str, second: str) -> None:
    pytest.importorskip("gevent")
    script = GEVENT.format(first=first, second=second)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
