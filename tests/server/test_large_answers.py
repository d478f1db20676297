"""Whole answers of any size and kind cost a real worker less than 100 MB of memory where the limit
is 32 MiB, and less than 200 MB by default."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes.raw_server import COMPLETION, Answer, Peer, RawServer, chunked, head, whole
from tests.kit.calls import EMBEDDINGS, GENERATIONS
from tests.kit.proxy import Proxy, StartProxy, start
from tests.kit.worker_memory import MB, Memory, ask

pytestmark = pytest.mark.server

MIB: Final = 1 << 20
MOST_MB: Final = 100
#: Just below the limit of 32 MiB that most tests have.
LARGE: Final = 32 * MIB - 4096
LIMIT: Final = {"QWEN_PROXY_MAX_ANSWER": "32m"}
#: The same by default, where the limit is 64 MiB.
MOST_BY_DEFAULT_MB: Final = 200
HUGE: Final = 500

Call = tuple[str, dict[str, Any]]

QWEN_EMBEDDINGS: Final[Call] = ("/v1/embeddings", {"model": "text-embedding-v4", "input": "hi"})
PICTURE_EMBEDDINGS: Final[Call] = (
    "/v1/embeddings",
    {"model": "qwen3-vl-embedding", "input": ["hi"]},
)
RANKING: Final[Call] = (
    "/v1/rerank",
    {"model": "qwen3-rerank", "query": "a", "documents": ["b"]},
)


def completion(content: bytes) -> bytes:
    """A whole answer with a content, which is written as JSON."""
    mark = "the content"
    choice = {"index": 0, "message": {"role": "assistant", "content": mark}, "text": "t"}
    value = {**COMPLETION, "choices": [{**choice, "finish_reason": "stop"}]}
    return json.dumps(value).encode().replace(b'"the content"', content)


def native_completion(content: bytes) -> bytes:
    choice = b'{"index":0,"text":%b,"finish_reason":"stop"}' % content
    return b'{"id":"c","object":"text_completion","choices":[%b]}' % choice


def text(size: int) -> bytes:
    return b'"' + b"x" * size + b'"'


def many(value: bytes, size: int = LARGE) -> bytes:
    return b"[" + (value + b",") * (size // (len(value) + 1)) + b"0]"


def huge(begin: bytes) -> Callable[[Peer], None]:
    """An answer of 500 MB, as far as anybody takes it."""

    def script(peer: Peer) -> None:
        block = b"x" * MB
        chunks = b"chunked" in begin
        peer.send(begin)
        for _ in range(HUGE):
            peer.send(chunked(block, end=False) if chunks else block)
        peer.close()

    return script


class Upstream:
    """Gives each call the answer of the moment, and a list of models."""

    def __init__(self) -> None:
        self.answer: Answer = b""
        self.models: Answer = b""
        self.reset()

    def reset(self) -> None:
        """Answer as at the beginning."""
        self.answer = whole(completion(b'"hi"'))
        self.models = whole(b'{"object":"list","data":[{"id":"m","object":"model"}]}')

    def __call__(self, peer: Peer) -> None:
        answer = self.models if b"/models " in peer.request.split(b"\r\n")[0] else self.answer
        if isinstance(answer, bytes):
            peer.send(answer)
        else:
            answer(peer)


def account(server: RawServer, *, qwen: bool = False) -> dict[str, str]:
    """The settings of the only account."""
    where = "DASHSCOPE" if qwen else "QWEN_UPSTREAM"
    return {where + "_BASE_URL": server.url + "/v1", where + "_API_KEY": "x"}


@dataclass
class Place:
    """A proxy of several tests, and their upstream; a start costs more than most of them."""

    upstream: Upstream
    server: RawServer
    proxy: Proxy

    def renewed(self) -> Place:
        """The same with nothing that the test before has left: the worker keeps some memory."""
        assert not self.server.failures
        self.upstream.reset()
        self.proxy.renew()
        return self


@contextmanager
def place(directory: Path, *, qwen: bool = False) -> Iterator[Place]:
    upstream = Upstream()
    with RawServer(upstream) as server:
        proxy = start(directory, {**account(server, qwen=qwen), **LIMIT})
        try:
            yield Place(upstream, server, proxy)
        finally:
            proxy.stop()


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("large")) as found:
        yield found


@pytest.fixture(scope="module")
def _place_of_qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("large"), qwen=True) as found:
        yield found


@pytest.fixture
def limited(_place: Place) -> Place:
    """An account elsewhere, and answers of 32 MiB at most."""
    return _place.renewed()


@pytest.fixture
def limited_qwen(_place_of_qwen: Place) -> Place:
    """The same with an account at Qwen."""
    return _place_of_qwen.renewed()


def cost(proxy: Proxy, call: Call) -> tuple[float, bytes, int]:
    """The memory that a call takes, in MB; the end and the size of its answer."""
    with Memory(proxy) as memory:
        answer, size = ask(proxy, *call)
    return memory.grown_mb, answer, size


#: Where a whole answer is turned into events, so that it may have 4 MiB.
AS_EVENTS: Final = {name for name in GENERATIONS if "streamed" in name} | {"responses, whole"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", sorted(GENERATIONS))
def test_a_large_answer_costs_less_than_100_mb_in_every_dialect(limited: Place, name: str) -> None:
    made = native_completion if name.startswith("completions") else completion
    limited.upstream.answer = whole(made(b'"hi"'))
    ask(limited.proxy, *GENERATIONS[name])  # what happens once has happened
    for size in (LARGE, 15 * MIB // 4):
        limited.upstream.answer = whole(made(text(size)))
        grown_mb, answer, told = cost(limited.proxy, GENERATIONS[name])
        assert grown_mb < MOST_MB
        if size == LARGE and name in AS_EVENTS:
            assert b"too much to be turned into the events" in answer
        else:
            assert told > size, answer


#: The body of an answer that has its size, but takes a multiple of it as Python's values, or that
#: has a text of which one character makes all others wide.
VALUES: Final = {
    "objects": completion(many(b"{}")),
    "arrays": completion(many(b"[]")),
    "numbers": completion(many(b"0.1")),
    "nested arrays": completion(many(b"[[[]]]")),
    "members": completion(many(b'{"a":1}')),
    "texts": completion(many(b'"ab"')),
    "a wide text": completion(b'"' + b"x" * LARGE + "汉😀".encode() + b'"'),
    "a wide text of escapes": completion(b'"' + b"x" * LARGE + b'\\u6c49\\ud83d\\ude00"'),
    "a text with escapes": completion(b'"' + (b"x" * 98 + b"\\n") * (LARGE // 100) + b'"'),
}


@pytest.mark.timeout(120)
def test_values_that_would_take_a_multiple_are_not_read(limited: Place) -> None:
    ask(limited.proxy, *GENERATIONS["chat, whole"])
    for name, body in VALUES.items():
        limited.upstream.answer = whole(body)
        grown_mb, answer, _ = cost(limited.proxy, GENERATIONS["chat, whole"])
        assert b'"upstream_too_large"' in answer, name
        assert grown_mb < MOST_MB, name
    limited.upstream.answer = whole(completion(b'"' + b"x" * (9 * MIB) + "汉😀".encode() + b'"'))
    grown_mb, answer, size = cost(limited.proxy, GENERATIONS["messages, whole"])

    assert size > 9 * MIB, answer  # it is a limit of memory, not of characters
    assert grown_mb < MOST_MB


def prose(size: int) -> bytes:
    line = 'Words follow words \N{GRINNING FACE} and "more" of 漢字.\n'
    written = json.dumps(line, ensure_ascii=False).encode()[1:-1]
    return b'"' + written * (size // len(written)) + b'"'


def beside(values: bytes) -> bytes:
    return completion(b'"hi"').replace(b'"object"', b'"more":%b,"object"' % values)


#: A large answer for a model of another name is rendered anew.
RENAMED: Final[Call] = ("/v1/chat/completions", {**GENERATIONS["chat, whole"][1], "model": "mine"})
CHAT: Final = GENERATIONS["chat, whole"]
MESSAGES: Final = GENERATIONS["messages, whole"]

#: By default: the body, the call, and whether it is served. What is served of values is just within
#: the bound of memory.
BY_DEFAULT: Final[dict[str, tuple[Callable[[], bytes], Call, bool]]] = {
    "a text": (lambda: completion(text(60 * MIB)), CHAT, True),
    "a text, in another dialect": (lambda: completion(text(60 * MIB)), MESSAGES, True),
    "a text and an integer of 70 bits": (
        lambda: completion(text(60 * MIB)).replace(b"{", b'{"more":%d,' % (1 << 70), 1),
        RENAMED,
        True,
    ),
    "objects": (lambda: beside(many(b"{}", 60 * MIB)), CHAT, False),
    "arrays in arrays": (lambda: beside(many(b"[" * 300 + b"]" * 300, 60 * MIB)), CHAT, False),
    "few objects": (lambda: beside(many(b"{}", 5 * MIB // 2)), MESSAGES, True),
    "few arrays in arrays": (
        lambda: beside(many(b"[" * 300 + b"]" * 300, 5 * MIB // 2)),
        RENAMED,
        True,
    ),
    "few numbers": (lambda: beside(many(b"0.1", 13 * MIB)), RENAMED, True),
    "prose with emoji": (lambda: completion(prose(60 * MIB)), CHAT, False),
    "little prose with emoji": (lambda: completion(prose(17 * MIB)), MESSAGES, True),
}


@pytest.mark.timeout(240)
def test_the_default_bounds_the_worst_kinds_and_serves_ordinary_text(
    start_proxy: StartProxy,
) -> None:
    upstream = Upstream()
    with RawServer(upstream) as server:
        proxy = start_proxy(**account(server), QWEN_PROXY_MODEL_ALIASES="mine=m")
        ask(proxy, *CHAT)
        for name, (body, call, served) in BY_DEFAULT.items():
            upstream.answer = whole(body())
            grown_mb, answer, size = cost(proxy, call)
            assert (b'"error"' not in answer) == served, (name, answer)
            assert (b"2.8 times QWEN_PROXY_MAX_ANSWER" in answer) != served, (name, answer)
            assert grown_mb < MOST_BY_DEFAULT_MB, name
            assert size > 60 * MIB or "text" not in name


FRAMINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "a gzip": lambda body: whole(
        # Stored, not packed: what packs well is refused for its growth.
        gzip.compress(body, 0),
        content_encoding="gzip",
    ),
    "chunks": lambda body: (
        head(content_type="application/json", transfer_encoding="chunked")
        + chunked(*(body[at : at + 70_000] for at in range(0, len(body), 70_000)))
    ),
    "no length": lambda body: head(content_type="application/json", connection="close") + body,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("framing", sorted(FRAMINGS))
def test_a_large_answer_of_any_framing(limited: Place, framing: str) -> None:
    def answer(peer: Peer) -> None:
        peer.send(framed)
        if framing == "no length":
            peer.close()

    framed = FRAMINGS[framing](completion(text(LARGE)))
    ask(limited.proxy, *GENERATIONS["chat, whole"])
    limited.upstream.answer = answer
    grown_mb, told, size = cost(limited.proxy, GENERATIONS["chat, whole"])

    assert size > LARGE, told
    assert grown_mb < MOST_MB


#: What comes before 500 MB, and the status and a word of what the client is told.
FLOODS: Final = {
    "with a length": (
        head(content_type="application/json", content_length="500000000"),
        (b"502", b"upstream_too_large"),
    ),
    "in chunks": (
        head(content_type="application/json", transfer_encoding="chunked"),
        (b"502", b"upstream_too_large"),
    ),
    "without a length": (
        head(content_type="application/json", connection="close"),
        (b"502", b"upstream_too_large"),
    ),
    "a refusal": (
        head("400 Bad Request", content_type="application/json", content_length="500000000"),
        (b"400", b"error"),
    ),
    "a failure in chunks": (
        head("500 Oops", content_type="application/json", transfer_encoding="chunked"),
        (b"502", b"error"),
    ),
}
CALLS: Final = {
    "chat": GENERATIONS["chat, whole"],
    "messages": GENERATIONS["messages, whole"],
    "embeddings": EMBEDDINGS,
}


@pytest.mark.timeout(120)
def test_500_mb_instead_of_an_answer(limited: Place) -> None:
    ask(limited.proxy, *GENERATIONS["chat, whole"])
    for name, (begin, _) in FLOODS.items():
        for call in CALLS.values():
            limited.upstream.answer = huge(begin)
            limited.proxy.forget_troubles()
            grown_mb, answer, size = cost(limited.proxy, call)
            assert b"error" in answer, name
            assert size < MIB
            assert grown_mb < MOST_MB, name


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["flood", "values"])
def test_a_list_of_models_that_is_no_list(start_proxy: StartProxy, name: str) -> None:
    upstream = Upstream()
    upstream.models = (
        huge(head(content_type="application/json", transfer_encoding="chunked"))
        if name == "flood"
        else whole(b'{"data":' + many(b"{}") + b"}")
    )
    with RawServer(upstream) as server:
        # A proxy of its own: others may know a list already.
        proxy = start_proxy(**account(server), **LIMIT)
        with Memory(proxy) as memory:
            answer, size = ask(proxy, "/v1/models", {}, method="GET")

    assert answer and size < MIB
    assert memory.grown_mb < MOST_MB


#: Calls of Qwen's hosts that have whole answers, and such an answer with room for something large.
UNARY: Final[dict[str, tuple[Call, bytes]]] = {
    "embeddings": (
        QWEN_EMBEDDINGS,
        b'{"data":[{"index":0,"embedding":[0.5]}],"usage":{"total_tokens":1},"more":%b}',
    ),
    "embeddings of pictures": (
        PICTURE_EMBEDDINGS,
        b'{"output":{"embeddings":[{"index":0,"embedding":[0.5]}]},"usage":{},"more":%b}',
    ),
    "ranking": (
        RANKING,
        b'{"results":[{"index":0,"relevance_score":0.5}],"usage":{},"more":%b}',
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", sorted(UNARY))
def test_other_whole_answers(limited_qwen: Place, name: str) -> None:
    call, body = UNARY[name]
    upstream = limited_qwen.upstream
    upstream.answer = whole(body % b"0")
    first, _ = ask(limited_qwen.proxy, *call)
    assert b"0.5" in first
    upstream.answer = whole(body % text(LARGE))
    fine_mb, fine, _ = cost(limited_qwen.proxy, call)
    upstream.answer = whole(body % many(b"{}"))
    bad_mb, bad, _ = cost(limited_qwen.proxy, call)

    assert b"0.5" in fine
    assert b'"upstream_too_large"' in bad
    assert max(fine_mb, bad_mb) < MOST_MB


@pytest.mark.timeout(120)
def test_the_answers_to_the_parts_of_one_call_have_one_limit(limited_qwen: Place) -> None:
    """200 rows are 20 calls of the host."""
    numbers = b"[" + b"0.1234567890123456," * 4096 + b"0]"
    rows = b",".join(b'{"index":%d,"embedding":%b}' % (i, numbers) for i in range(10))
    upstream = limited_qwen.upstream
    upstream.answer = whole(b'{"data":[' + rows + b'],"usage":{},"more":' + text(3 * MIB) + b"}")
    path, body = QWEN_EMBEDDINGS
    proxy = limited_qwen.proxy
    ask(proxy, path, {**body, "input": ["hi"] * 10})
    grown_mb, answer, _ = cost(proxy, (path, {**body, "input": ["hi"] * 200}))

    assert b'"upstream_too_large"' in answer
    assert grown_mb < MOST_MB
