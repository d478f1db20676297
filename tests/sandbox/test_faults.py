"""Each behaviour of the table does what its description says."""

from __future__ import annotations

import http.client
import json
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox, errors, faults
from tests.sandbox.support import (
    TOOL,
    Answer,
    ask,
    call,
    chat_bytes,
    post,
    raw_request,
    read_all,
    read_until,
    request_body,
    stream,
)

REFUSALS = {
    "throttle": (429, "limit_requests"),
    "burst": (429, "limit_burst_rate"),
    "quota": (429, "insufficient_quota"),
    "plan-quota": (429, "insufficient_quota"),
    "free-tier": (403, "AllocationQuota.FreeTierOnly"),
    "free-quota": (429, "insufficient_quota"),
    "arrearage": (400, "Arrearage"),
    "invalid-key": (401, "invalid_api_key"),
    "token-expired": (401, "invalid_api_key"),
    "denied": (403, "access_denied"),
    "agents-only": (405, "agents_only"),
    "model-not-found": (404, "model_not_found"),
    "context-length": (400, "invalid_parameter_error"),
    "inspection": (400, "data_inspection_failed"),
    "overload": (503, "ModelUnavailable"),
    "internal": (500, "internal_error"),
    "gateway-timeout": (504, "stream_timeout"),
    "too-large": (413, "payload_too_large"),
    "bad-request": (400, "invalid_parameter_error"),
    "strict-portal": (400, "invalid_parameter_error"),
    "status=418": (418, "internal_error"),
    "error=Audio.DurationLimit": (430, None),
    "error=insufficient_quota@403": (403, "insufficient_quota"),
}


@pytest.mark.parametrize("spec", REFUSALS)
def test_refusals(sandbox: Sandbox, spec: str) -> None:
    status, code = REFUSALS[spec]
    for answer in (ask(sandbox, spec), stream(sandbox, spec)):
        assert answer.status == status
        body = answer.json()
        if code is not None:
            assert body["error"]["code"] == code
            assert body["error"]["param"] is None
            assert body["request_id"]
        else:
            assert body["code"] == "Audio.DurationLimit"


@pytest.mark.parametrize("row", errors.codes(), ids=lambda row: f"{row['code']}@{row['status']}")
def test_every_row_of_the_error_table_by_its_code(sandbox: Sandbox, row: dict[str, Any]) -> None:
    code = row["code"].replace("*", "Example")
    answer = ask(sandbox, f"error={code}@{row['status']}".replace(" ", "%20"))

    assert answer.status == row["status"]
    body = answer.json()
    assert (body if row["form"] == "native" else body["error"])["code"] == code


def test_texts_of_refusals(sandbox: Sandbox) -> None:
    assert ask(sandbox, "context-length=77").message == "Range of input length should be [1, 77]"
    assert ask(sandbox, "plan-quota=week").message == "week allocated quota exceeded"
    assert "will reset at 20" in ask(sandbox, "plan-quota=week, reset-in=60").message
    assert "`qwen-plus`" in ask(sandbox, "model-not-found").message
    assert ask(sandbox, "throttle, message=a%2C b").message == "a, b"
    assert "Free allocated quota exceeded" in ask(sandbox, "free-quota").message


def test_forms_of_refusals(sandbox: Sandbox) -> None:
    assert ask(sandbox, "throttle, form=native").json()["code"] == "limit_requests"
    assert ask(sandbox, "error=Throttling, form=compat").code == "Throttling"
    framed = stream(sandbox, "sse-400, error=Arrearage")
    assert framed.status == 400
    assert json.loads(framed.payloads[0])["error"]["code"] == "Arrearage"
    assert ask(sandbox, "form=nonsense, throttle").code == "sandbox_bad_spec"


def test_retry_after(sandbox: Sandbox) -> None:
    assert ask(sandbox, "throttle, retry-after=2").headers["retry-after"] == "2"
    date = ask(sandbox, "empty-503, retry-after-date=60").headers["retry-after"]
    assert date.endswith("GMT")


def test_a_burst_is_queued_if_the_client_allows_it(sandbox: Sandbox) -> None:
    def status(seconds: str) -> int:
        body = request_body()
        spec, wait = "burst=0.02", {"x_dashscope_wait_timeout": seconds}
        return post(sandbox, "chat/completions", body, spec, **wait).status

    assert (status("0.01"), status("nonsense"), status("1")) == (429, 429, 200)


def test_the_portal_wants_a_marked_system_message(sandbox: Sandbox) -> None:
    part = {"type": "text", "text": "", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "system", "content": [part]}, {"role": "user", "content": "x"}]

    assert ask(sandbox, "strict-portal", messages=messages).status == 200


@pytest.mark.parametrize(
    ("spec", "status", "kind", "start"),
    [
        ("html-502", 502, "text/html; charset=utf-8", b"<html>"),
        ("html-200", 200, "text/html; charset=utf-8", b"<!doctypehtml>"),
        ("empty-503", 503, None, b""),
        ("empty-200", 200, None, b""),
        ("empty-404", 404, None, b""),
        ("not-json", 200, "application/json", b"[sandbox] {not"),
        ("json-error-200", 200, "application/json", b'{"request_id"'),
        ("redirect", 302, None, b""),
        ("non-stream-json", 200, "application/json", b'{"choices":[{"message"'),
    ],
)
def test_other_whole_answers(
    sandbox: Sandbox, spec: str, status: int, kind: str | None, start: bytes
) -> None:
    answer = stream(sandbox, spec)

    assert (answer.status, answer.headers.get("content-type")) == (status, kind)
    assert answer.body.startswith(start)
    assert bool(answer.body) == bool(start)


def test_a_stream_where_none_was_asked_for(sandbox: Sandbox) -> None:
    assert ask(sandbox, "stream-anyway").payloads[-1] == "[DONE]"


# --- connection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["drop", "garbage", "reset"])
def test_no_answer_at_all(sandbox: Sandbox, spec: str) -> None:
    for send in (ask, stream):
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            send(sandbox, spec)
    outcomes = {record.outcome for record in sandbox.settle()}
    assert outcomes == {"reset" if spec == "reset" else "cut"}


def test_a_close_inside_the_headers(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("half-headers")) as sock:
        assert read_all(sock) == b"HTTP/1.1 200 OK\r\ncontent-ty"


@pytest.mark.parametrize("spec", ["cut-after=2", "cut-mid-event=2", "bad-chunk=2"])
def test_cuts_inside_the_chunked_body(sandbox: Sandbox, spec: str) -> None:
    with raw_request(sandbox, chat_bytes(spec)) as sock:
        data = read_all(sock)

    assert data.count(b"data: ") == (3 if spec.startswith("cut-mid") else 2)
    assert not data.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in data
    assert sandbox.settle()[-1].outcome == "cut"


def test_a_cut_before_the_first_event_comes_after_the_headers(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("cut-after=0")) as sock:
        data = read_all(sock)

    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert b"data:" not in data


def test_a_cut_later_than_the_last_event_still_cuts(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("cut-after=999")) as sock:
        assert not read_all(sock).endswith(b"0\r\n\r\n")


def test_resets(sandbox: Sandbox) -> None:
    for streamed in (True, False):
        with (
            raw_request(sandbox, chat_bytes("reset-after=2", stream=streamed)) as sock,
            pytest.raises(ConnectionResetError),
        ):
            read_all(sock)
    assert sandbox.settle()[-1].outcome == "reset"


def test_a_whole_body_can_be_cut_too(sandbox: Sandbox) -> None:
    with pytest.raises(http.client.IncompleteRead):
        ask(sandbox, "cut-after")


def test_bodies_in_pieces(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("split=1, close", text="世")) as sock:
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    whole = stream(sandbox, "split=3", text="世界")

    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    assert body.endswith(b"data: [DONE]\n\n")
    assert whole.text.endswith("世界")


def test_split_flushes_each_piece(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("split=1, cut-after=1")) as sock:
        _, _, body = read_all(sock).partition(b"\r\n\r\n")

    assert body.startswith(b"1\r\nd\r\n1\r\na\r\n1\r\nt\r\n1\r\na\r\n")


def test_gzip(sandbox: Sandbox) -> None:
    for answer, end in ((stream(sandbox, "gzip"), b"[DONE]\n\n"), (ask(sandbox, "gzip"), b"}")):
        assert answer.headers["content-encoding"] == "gzip"
        assert zlib.decompress(answer.body, wbits=31).endswith(end)
    assert stream(sandbox, "gzip, empty-503").status == 503


def test_gzip_delivers_each_event_at_once(sandbox: Sandbox) -> None:
    unpacker = zlib.decompressobj(wbits=31)
    with raw_request(sandbox, chat_bytes("gzip, close, stall-after=2")) as sock:
        head, _, packed = read_until(sock, b"\r\n\r\n").partition(b"\r\n\r\n")
        data = unpacker.decompress(packed)
        while data.count(b"data: ") < 2:
            data += unpacker.decompress(sock.recv(65536))

    assert data.endswith(b"\n\n")


def test_a_connection_may_close_after_promising_not_to(sandbox: Sandbox) -> None:
    for streamed in (True, False):
        with raw_request(sandbox, chat_bytes("close-silently", stream=streamed)) as sock:
            data = read_all(sock)
        assert b"connection: close" not in data
        assert data.endswith((b"0\r\n\r\n", b"}"))
    assert {record.outcome for record in sandbox.settle()} == {"complete"}


# --- time ----------------------------------------------------------------------------------------


def test_slow_first_sends_headers_at_once_and_slow_headers_does_not(sandbox: Sandbox) -> None:
    with raw_request(sandbox, chat_bytes("slow-first=30")) as sock:
        assert b"200 OK" in read_until(sock, b"\r\n\r\n")
    with raw_request(sandbox, chat_bytes("slow-headers=30")) as sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)


@pytest.mark.parametrize("spec", ["slow-first=0.05", "slow-headers=0.05", "interval=0.01"])
def test_delays_end(sandbox: Sandbox, spec: str) -> None:
    started_s = time.monotonic()
    assert stream(sandbox, spec).payloads[-1] == "[DONE]"
    assert time.monotonic() - started_s >= 0.05
    assert ask(sandbox, spec).status == 200


def test_a_stall_can_end(sandbox: Sandbox) -> None:
    assert stream(sandbox, "stall-after=2, stall-for=0.02").payloads[-1] == "[DONE]"
    assert ask(sandbox, "stall-after=2, stall-for=0.02").json()["usage"]


def test_heartbeats_while_it_waits(sandbox: Sandbox) -> None:
    body = stream(sandbox, "slow-first=0.05, heartbeat=0.01").body

    assert body.count(b": sandbox keep-alive\n\n") >= 3
    assert body.startswith(b":")


# --- failures inside a stream --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "before", "code"),
    [
        ("error-frame-after=2", 2, "internal_error"),
        ("error-frame-after=1, error=ModelUnavailable", 1, "ModelUnavailable"),
        ("inspection-mid-stream=3", 3, "data_inspection_failed"),
        ("throttle-in-stream", 0, "limit_requests"),
    ],
)
def test_error_events(sandbox: Sandbox, spec: str, before: int, code: str) -> None:
    answer = stream(sandbox, spec)

    assert answer.status == 200
    assert len(answer.payloads) == before + 1
    assert json.loads(answer.payloads[-1])["error"]["code"] == code


def test_an_error_event_later_than_the_last_event_comes_at_the_end(sandbox: Sandbox) -> None:
    assert "error" in json.loads(stream(sandbox, "error-frame-after=999").payloads[-1])


def test_a_native_error_event(sandbox: Sandbox) -> None:
    body = stream(sandbox, "native-error-event, error=Throttling.RateQuota, message=slow").body

    assert body.startswith(b"id:1\nevent:error\n:HTTP_STATUS/429\ndata:{")
    assert b'"message": "slow"' in body


def test_error_finish(sandbox: Sandbox) -> None:
    answer = stream(sandbox, "error-finish")

    assert answer.finish == ["error_finish"]
    assert answer.deltas[-1]["content"].startswith("Throttling.RateQuota")
    assert stream(sandbox, "error-finish=broken").deltas[-1]["content"] == "broken"


# --- shape of the stream -------------------------------------------------------------------------


def test_line_ends(sandbox: Sandbox) -> None:
    plain = stream(sandbox).body
    for spec, eol in (("crlf", b"\r\n"), ("cr", b"\r")):
        body = stream(sandbox, spec).body
        assert body.endswith(b"data: [DONE]" + eol + eol)
        assert body.count(eol) == plain.count(b"\n")


def test_other_fields_and_comments(sandbox: Sandbox) -> None:
    body = stream(sandbox, "ids, comments, no-space, bom").body

    assert body.startswith(
        b"\xef\xbb\xbf: sandbox keep-alive\n\nid: 1\nevent: message\nretry: 3000\n"
    )
    assert b"\ndata:{" in body


def test_an_event_on_two_lines(sandbox: Sandbox) -> None:
    body = stream(sandbox, "multi-data", text='say ","').body.decode()
    events = [event for event in body.split("\n\n") if event]
    joined = ["".join(line[6:] for line in event.split("\n")) for event in events]

    assert any(event.count("\n") == 1 for event in events)
    assert all(json.loads(data) for data in joined[:-1])


def test_the_last_event_without_a_blank_line(sandbox: Sandbox) -> None:
    body = stream(sandbox, "no-blank-end").body

    assert body.endswith(b"\n\ndata: [DONE]")


def test_an_event_that_is_no_json(sandbox: Sandbox) -> None:
    payloads = stream(sandbox, "bad-json-event=1").payloads

    assert payloads[1] == '{"choices":[{"delta":{"content":"[sandbox'
    assert payloads[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("spec", "text", "finish", "done"),
    [
        ("empty-stream", "", [], False),
        ("done-only", "", [], True),
        ("finish-only", "", ["stop"], True),
        ("no-done", "[sandbox] You said: hello", ["stop"], False),
        ("no-finish", "[sandbox] You said: hello", [], False),
        ("finish=content_filter", "[sandbox] You said: hello", ["content_filter"], True),
        ("twice-finish", "[sandbox] You said: hello", ["stop", "stop"], True),
        ("dup-first", "[sandbox] [sandbox] You said: hello", ["stop"], True),
        ("empty-chunks", "[sandbox] You said: hello", ["stop"], True),
    ],
)
def test_ends_of_streams(
    sandbox: Sandbox, spec: str, text: str, finish: list[str], done: bool
) -> None:
    answer = stream(sandbox, spec)

    assert (answer.text, answer.finish) == (text, finish)
    assert ("[DONE]" in answer.payloads) == done


def test_cumulative_deltas(sandbox: Sandbox) -> None:
    contents = [delta["content"] for delta in stream(sandbox, "cumulative").deltas[1:-1]]

    assert contents[-1] == "[sandbox] You said: hello"
    assert all(late.startswith(early) for early, late in zip(contents, contents[1:], strict=False))


def test_thinking_in_other_places(sandbox: Sandbox) -> None:
    tagged = stream(sandbox, "think-tags")
    renamed = stream(sandbox, "think, reasoning-field")

    assert tagged.text.startswith("<think>\n")
    assert "</think>\n\n[sandbox]" in tagged.text
    assert any(delta.get("reasoning") for delta in renamed.deltas)
    message = ask(sandbox, "think, reasoning-field").json()["choices"][0]["message"]
    assert message["reasoning"]


def test_sizes(sandbox: Sandbox) -> None:
    assert len(stream(sandbox, "chunks=50").deltas) == 52
    assert len(stream(sandbox, "long=5000").text) >= 5000
    assert {len(d["content"]) for d in stream(sandbox, "text=abcdef, size=2").deltas[1:-1]} == {2}
    assert max(len(data) for data in stream(sandbox, "huge-event=300000").payloads) > 300_000
    half = ask(sandbox, "partial-success, text=abcdef").json()["choices"][0]
    assert (half["message"]["content"], half["finish_reason"]) == ("abc", "stop")


# --- tool calls ----------------------------------------------------------------------------------


def tool_stream(sandbox: Sandbox, spec: str) -> Answer:
    return stream(sandbox, spec, tools=[TOOL])


def arguments_of(fragments: list[Any]) -> str:
    return "".join(fragment["function"]["arguments"] or "" for fragment in fragments)


def test_parallel_tool_calls(sandbox: Sandbox) -> None:
    apart = tool_stream(sandbox, "tools=2").fragments
    together = tool_stream(sandbox, "tools=2, tool-collide").fragments

    assert {fragment["index"] for fragment in apart} == {0, 1}
    assert {fragment["index"] for fragment in together} == {0}
    assert len({fragment["id"] for fragment in together if fragment["id"]}) == 2


def test_rounds_of_tool_calls(sandbox: Sandbox) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    finishes = []
    for _ in range(3):
        answer = ask(sandbox, "tool-rounds=2", tools=[TOOL], messages=messages).json()
        choice = answer["choices"][0]
        finishes.append(choice["finish_reason"])
        messages.append(choice["message"])
        for called in choice["message"].get("tool_calls", ()):
            messages.append({"role": "tool", "tool_call_id": called["id"], "content": "done"})

    assert finishes == ["tool_calls", "tool_calls", "stop"]


def test_null_arguments(sandbox: Sandbox) -> None:
    fragments = tool_stream(sandbox, "null-args").fragments

    assert fragments[0]["function"]["arguments"] is None
    assert fragments[-1]["function"]["arguments"] is None
    assert json.loads(arguments_of(fragments))


def test_ids_and_indexes_of_fragments(sandbox: Sandbox) -> None:
    late = tool_stream(sandbox, "tool-late-id").fragments

    assert "id" not in late[0]
    assert late[1]["id"].startswith("call_")
    assert not any("id" in one for one in tool_stream(sandbox, "tool-no-id").fragments)
    assert not any("index" in one for one in tool_stream(sandbox, "tool-no-index").fragments)


def test_repetitions_of_tool_calls(sandbox: Sandbox) -> None:
    first, *_, last = tool_stream(sandbox, "tool-replay").fragments
    named = tool_stream(sandbox, "tool-name-again").fragments

    assert (last["id"], last["function"]["name"]) == (first["id"], "get_weather")
    assert {fragment["function"].get("name") for fragment in named} == {"get_weather"}


def test_arguments_of_tool_calls(sandbox: Sandbox) -> None:
    (whole,) = tool_stream(sandbox, "tool-whole").fragments

    assert json.loads(whole["function"]["arguments"]) == {"city": "sandbox city"}
    assert arguments_of(tool_stream(sandbox, "tool-empty-args").fragments) == ""
    assert arguments_of(tool_stream(sandbox, "tool-args=%7B%22a%22: 1%7D").fragments) == '{"a": 1}'
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(arguments_of(tool_stream(sandbox, "tool-bad-json").fragments))


def test_tool_calls_in_disguise(sandbox: Sandbox) -> None:
    text = tool_stream(sandbox, "xml-tools").text

    assert '<invoke name="get_weather">' in text
    assert '<parameter name="city">sandbox city</parameter>' in text
    broken = tool_stream(sandbox, "xml-tools, tool-bad-json").text
    assert broken.endswith('{"city": "sandbox city\n</invoke>\n</function_calls>')
    assert tool_stream(sandbox, "tool-finish-stop").finish == ["stop"]
    assert tool_stream(sandbox, "no-tools").text.startswith("[sandbox]")


# --- usage ---------------------------------------------------------------------------------------


def usages(answer: Answer) -> list[Any]:
    return [chunk["usage"] for chunk in answer.chunks if chunk.get("usage")]


def test_places_of_usage(sandbox: Sandbox) -> None:
    together = stream(sandbox, "usage-with-finish")

    assert together.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert together.chunks[-1]["usage"]["total_tokens"] > 0
    assert usages(stream(sandbox, "no-usage")) == []
    assert "usage" not in ask(sandbox, "no-usage").json()
    assert len(usages(stream(sandbox, "usage-each"))) > 3
    nulls = stream(sandbox, "usage-null", stream_options=None).chunks
    assert all(chunk["usage"] is None for chunk in nulls)


def test_shapes_of_usage(sandbox: Sandbox) -> None:
    exact = ask(sandbox, "prompt-tokens=100, completion-tokens=10, cached=64").json()["usage"]

    assert exact["total_tokens"] == 110
    assert exact["prompt_tokens_details"] == {"cached_tokens": 64}
    assert ask(sandbox, "cached=64, cached-top-level").json()["usage"]["cached_tokens"] == 64
    assert ask(sandbox, "details-null").json()["usage"]["prompt_tokens_details"] is None
    totals = ask(sandbox, "usage-totals-only").json()["usage"]
    assert totals["prompt_tokens"] == totals["completion_tokens"] == 0 < totals["total_tokens"]


# --- the notation --------------------------------------------------------------------------------


def test_a_spec_can_be_given_in_three_places(sandbox: Sandbox) -> None:
    assert ask(sandbox, model="sandbox/throttle").status == 429
    assert ask(sandbox, model="qwen-plus/sandbox/throttle").status == 429
    assert ask(sandbox, text="please [[sandbox: throttle; retry-after=3]]").status == 429
    assert ask(sandbox, "text=a", text="b [[sandbox: think]]").json()["choices"][0]["message"][
        "reasoning_content"
    ]
    answer = ask(sandbox, text="hello [[sandbox: lax]]")
    assert answer.json()["choices"][0]["message"]["content"] == "[sandbox] You said: hello"
    parts = [{"type": "text", "text": "[[sandbox: denied]]"}]
    assert ask(sandbox, messages=[{"role": "user", "content": parts}]).status == 403


@pytest.mark.parametrize(
    "spec",
    ["nonsense", "chunks=x", "slow-first=nan", "slow-first=-1", "drop=1", "error=nonsense"],
)
def test_a_spec_that_is_not_understood_is_refused_loudly(sandbox: Sandbox, spec: str) -> None:
    answer = stream(sandbox, spec)

    assert (answer.status, answer.code) == (400, "sandbox_bad_spec")
    assert answer.message.startswith("[sandbox]")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url"])
def test_a_model_of_text_refuses_media(sandbox: Sandbox, kind: str) -> None:
    """`text-only`, in the words of Model Studio."""
    for parts, status in (([{"type": "text", "text": "a"}], 200), ([{"type": kind}], 400)):
        answer = ask(sandbox, "text-only", messages=[{"role": "user", "content": parts}])
        assert answer.status == status
    assert b"Unexpected item type in content" in answer.body


def test_the_table_is_listed_and_every_row_is_tested_here(sandbox: Sandbox) -> None:
    listed = call(sandbox, "GET", "/_sandbox/faults").json()
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))

    assert [row["name"] for row in listed["faults"]] == list(faults.BEHAVIOURS)
    assert all(row["what"] and row["source"] and row["topic"] for row in listed["faults"])
    assert listed["errors"]
    assert [name for name in faults.BEHAVIOURS if name not in tests] == []


@pytest.mark.parametrize("name", faults.BEHAVIOURS)
def test_no_behaviour_breaks_the_sandbox_on_any_route(sandbox: Sandbox, name: str) -> None:
    """Each one, with its default, on each route: nothing may fail inside (see the fixture)."""
    spec = name + ", slow-first=0, slow-headers=0, slow-before=0, slow-after=0, stall-for=0"
    if name == "hang":
        spec = "hang"
    if name in ("slow-first", "slow-headers", "slow-before", "slow-after", "stall-for"):
        spec = name + "=0"
    token = sandbox.issue("test-client")["refresh_token"]
    form = f"grant_type=refresh_token&client_id=test-client&refresh_token={token}"
    bodies = [
        ("chat/completions", json.dumps(request_body(tools=[TOOL], n=1))),
        ("chat/completions", json.dumps(request_body(stream=True))),
        ("embeddings", json.dumps({"model": "text-embedding-v4", "input": "x"})),
    ]
    requests = [("POST", "/v1/" + path, body) for path, body in bodies]
    requests += [("GET", "/v1/models", ""), ("POST", "/api/v1/oauth2/token", form)]
    for method, path, body in requests:
        kind = "application/x-www-form-urlencoded" if "oauth2" in path else "application/json"
        head = (
            f"{method} {path} HTTP/1.0\r\nAuthorization: Bearer sk-12345678\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nx-sandbox: {spec}\r\n\r\n"
        )
        with raw_request(sandbox, (head + body).encode()) as sock:
            if name != "hang":
                sock.settimeout(5)
                try:
                    read_all(sock)
                except ConnectionResetError:
                    assert name in ("reset", "reset-after")
    assert all(record.outcome != "open" for record in sandbox.settle())
