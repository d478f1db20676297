"""Whatever fails at any point of an answer, its place, its slot and its upstream are given back."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest
from werkzeug.test import EnvironBuilder

from qwen_wsgi import greenlets
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.server import free_call
from tests.api.apps import App, in_front_of
from tests.fakes.raw_server import COMPLETION, Answer, Peer, RawServer, stream, whole
from tests.kit import uploads
from tests.kit.calls import EMBEDDINGS, GENERATIONS
from tests.kit.servers import wait_until

pytestmark = pytest.mark.once

CHUNK = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%d"},'
    b'"finish_reason":null}]}\n\n'
)
END = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\n'
)
ANSWER = stream(CHUNK % 1, CHUNK % 2, END, b"data: [DONE]\n\n")
WHOLE = whole(json.dumps(COMPLETION).encode())
TEXT = whole(
    b'{"id":"c","object":"text_completion","created":1,"model":"m",'
    b'"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}'
)

FILE = whole(b'{"id":"file-1","object":"file","bytes":2,"purpose":"batch","status":"processed"}')


def file_uploaded(peer: Peer) -> None:
    peer.whole_request()
    peer.send(FILE)


def file_transcribed(peer: Peer) -> None:
    """The storage and its policy, the task's beginning and end, and the transcript, in one."""
    host = next(line[6:] for line in peer.request.split(b"\r\n") if line.startswith(b"Host: "))
    origin = f"http://{host.decode()}"
    made = {
        "data": {
            **dict.fromkeys(("policy", "signature", "upload_dir", "oss_access_key_id"), "p"),
            **dict.fromkeys(("x_oss_object_acl", "x_oss_forbid_overwrite"), "p"),
            "upload_host": origin + "/storage",
        },
        "output": {
            "task_id": "t-1",
            "task_status": "SUCCEEDED",
            "result": {"transcription_url": origin + "/made"},
        },
        "usage": {"seconds": 1},
        "transcripts": [
            {"text": "a", "sentences": [{"begin_time": 0, "end_time": 1, "text": "a"}]}
        ],
    }
    peer.send(whole(json.dumps(made).encode()))


def transcript(**fields: str) -> bytes:
    """A form that asks for one."""
    given = b"".join(uploads.field(name, value) for name, value in fields.items())
    return given + uploads.file(b"RIFF\0\0\0\0WAVE") + uploads.END


#: What a server without client keys calls everybody.
OWNER = "local"
FORM = uploads.field("purpose", "batch") + uploads.file(b"{}") + uploads.END


class Request(NamedTuple):
    """A call, and the upstream's answer to it."""

    path: str
    body: dict[str, Any] | bytes
    answer: Answer
    method: str = "POST"
    places: int = 60  #: functions on its way, at least

    @property
    def environ(self) -> dict[str, Any]:
        if isinstance(self.body, bytes):
            sent: dict[str, Any] = {"data": self.body, "content_type": uploads.TYPE}
        else:
            sent = {"json": self.body}
        made = EnvironBuilder(self.path, method=self.method, **sent).get_environ()
        return {**made, "REMOTE_ADDR": "127.0.0.1"}

    @property
    def settings(self) -> dict[str, str]:
        """What its answer needs."""
        if not isinstance(self.body, dict) or self.body.get("model", "qwen").startswith("qwen"):
            return {"QWEN_PROXY_HOST_FAMILIES": "127.0.0.1=dashscope"}
        return {"QWEN_PROXY_UPSTREAM_STREAM": "always"} if self.answer is ANSWER else {}


CALLS: dict[str, Request] = {
    **{
        name: Request(*call, ANSWER)
        for name, call in GENERATIONS.items()
        if name not in ("chat, whole", "messages, whole") and "completions" not in name
    },
    "completions, streamed": Request(*GENERATIONS["completions, streamed"], TEXT),
    "chat, whole": Request(*GENERATIONS["chat, whole"], WHOLE),
    "chat, put together": Request(*GENERATIONS["chat, whole"], ANSWER),
    "embeddings": Request(
        *EMBEDDINGS,
        # The id is for the question for the host's models, which this is the answer to as well.
        whole(b'{"data":[{"id":"m","object":"embedding","index":0,"embedding":[0.5]}]}'),
    ),
    # What only Qwen's hosts are asked for.
    "ranking": Request(
        "/v1/rerank",
        {"model": "qwen3-rerank", "query": "hi", "documents": ["a", {"text": "b"}], "user": "u"},
        whole(b'{"results":[{"index":1,"relevance_score":1},{"index":0,"relevance_score":0.5}]}'),
    ),
    "embeddings of pictures": Request(
        "/v1/embeddings",
        {"model": "qwen3-vl-embedding", "input": [{"image": "https://x/1.png"}]},
        whole(b'{"output":{"embeddings":[{"index":0,"embedding":[0.5]}]}}'),
    ),
    "transcript": Request("/v1/audio/transcriptions", transcript(model="qwen3-asr-flash"), WHOLE),
    "transcript, streamed": Request(
        "/v1/audio/transcriptions", transcript(model="qwen3-asr-flash", stream="true"), ANSWER
    ),
    "transcript, by a task": Request(
        "/v1/audio/transcriptions",
        transcript(model="qwen3-asr-flash", response_format="verbose_json"),
        file_transcribed,
    ),
    "upload": Request("/v1/files", FORM, file_uploaded),
    "a file": Request("/v1/files/file-1", b"", FILE, "GET"),
    "download": Request("/v1/files/file-1/content", b"", whole(b"{}" * 40_000), "GET"),
    "deletion": Request("/v1/files/file-1", b"", whole(b'{"deleted":true}'), "DELETE"),
    "batch": Request(
        "/v1/batches",
        {
            "input_file_id": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
        whole(b'{"id":"b","object":"batch","status":"validating","output_file_id":"file-1"}'),
    ),
}

#: Giving back cannot be proven where giving back itself is what fails.
FREEING = {
    "Admission.leave",
    "Limiter.release",
    "Slot.release",
    "OpenStream.close",
    "PooledResponse._let_go",
    "Task._run",
    "free_call",
}


class Fault(Exception):
    """What the test raises."""


class Trap:
    """Raises at the first call of one function of the package, or notes all functions called."""

    def __init__(self, place: CodeType | None = None) -> None:
        self.place = place
        self.seen: dict[CodeType, None] = {}
        self.sprung = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or "/qwen_wsgi/" not in code.co_filename:
            return
        self.seen[code] = None
        if code is self.place and not self.sprung:
            self.sprung = True
            raise Fault(code.co_qualname)

    def __enter__(self) -> Trap:
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


def serve(app: App, call: Request, *, step: Callable[[str], None] = lambda name: None) -> bytes:
    """One request as gunicorn's gevent worker serves it, with its hook; `step` may raise."""
    environ = call.environ
    own_a_file(app)

    def start_response(status: str, headers: list[Any], exc_info: Any = None) -> Any:
        step("start_response")

    sent = b""
    try:
        answer = app.client.application(environ, start_response)
        try:
            for piece in answer:
                step("write")
                sent += piece
            step("end")
        finally:
            step("access log")
            step("close")
            getattr(answer, "close", lambda: None)()
    finally:
        free_call(environ)
    return sent


def own_a_file(app: App) -> None:
    """Have the only account's file be the client's."""
    account = app.services.pool.accounts()[0].name
    made = {"id": "file-1", "object": "file", "purpose": "batch", "created_at": 1}
    app.services.host_objects.put("file", OWNER, account, made)


def check_free(app: App, server: RawServer) -> None:
    """Nothing is held: no place, no room for bodies, no slot, and no connection but idle ones."""
    services = app.services
    gc.collect()
    assert services.admission.in_flight == 0
    assert services.admission.bytes_in_flight == 0
    for account in services.pool.accounts():
        limiter = services.pool.limiter(account)
        assert (limiter.in_flight, limiter.waiting) == (0, 0)
    wait_until(lambda: sum(not each.closed for each in server._peers) <= 1, "closed connections")


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> None:
    """Hundreds of collections follow, which need not look at what other tests have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def traced_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Trap]]:
    """The trap of a test is set in the greenlets of its tasks, too."""
    traps: list[Trap] = []
    run = greenlets.Task._run

    def traced(task: Any) -> None:
        if traps:
            sys.setprofile(traps[-1])
        try:
            run(task)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(greenlets.Task, "_run", traced)
    yield traps
    sys.setprofile(None)


# Where closing itself fails, a socket is closed when it is forgotten, which Python warns of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_a_fault_in_any_function_on_the_way_leaves_nothing_behind(
    name: str, traced_tasks: list[Trap]
) -> None:
    call = CALLS[name]
    with in_front_of(call.answer, QWEN_PROXY_ACCOUNT_IN_FLIGHT=1, **call.settings) as (app, server):
        # What happens once in a process is no part of the way.
        answer = serve(app, call)
        assert app.calls[-1]["status"] == 200, answer
        with Trap() as noted:
            traced_tasks.append(noted)
            serve(app, call)
        check_free(app, server)
        places = [code for code in noted.seen if code.co_qualname not in FREEING]
        assert len(places) > call.places

        failures = []
        for place in places:
            traced_tasks.append(Trap(place))
            with traced_tasks[-1], suppress(Exception):
                serve(app, call)
            sys.setprofile(None)
            try:
                check_free(app, server)
            except AssertionError:
                failures.append(place.co_qualname)
                app.services.admission.in_flight = 0
                app.services.admission.bytes_in_flight = 0
                for account in app.services.pool.accounts():
                    app.services.pool.limiter(account).in_flight = 0
        assert failures == [], failures


@pytest.mark.parametrize("failing", ["start_response", "write", "end", "access log", "close"])
@pytest.mark.parametrize("name", CALLS)
def test_a_fault_of_the_server_leaves_nothing_behind(name: str, failing: str) -> None:
    """A NUL in a header, for one: gunicorn's start_response refuses it."""

    def step(at: str) -> None:
        if at == failing:
            raise Fault(at)

    call = CALLS[name]
    with in_front_of(call.answer, QWEN_PROXY_ACCOUNT_IN_FLIGHT=1, **call.settings) as (app, server):
        with pytest.raises(Fault):
            serve(app, call, step=step)
        check_free(app, server)
        assert serve(app, call)


@pytest.mark.parametrize(("characters", "held"), [(100, 1), (20_000, 0)])
def test_a_stream_does_not_hold_the_body_of_a_large_request(characters: int, held: int) -> None:
    """A small one is held, to name the request if the stream fails."""
    message = {"role": "user", "content": "a" * characters}
    call = Request(
        "/v1/chat/completions", {"model": "m", "stream": True, "messages": [message]}, ANSWER
    )
    with in_front_of(call.answer, **call.settings) as (app, _):
        before = {id(each) for each in bodies()}
        environ = call.environ
        application: Any = app.client.application
        with closing(application(environ, lambda *_: None)) as answer:
            assert next(iter(answer))
            found = [each for each in bodies() if id(each) not in before]
        free_call(environ)

    assert len(found) == held


def bodies() -> list[JsonObject]:
    """The bodies of requests that something holds."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, JsonObject)]
