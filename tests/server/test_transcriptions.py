"""Transcripts with the official openai package against the running server."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.native.asr import TEXT
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

pytestmark = pytest.mark.server

FLASH = "qwen3-asr-flash"
AUDIO = "qwen-audio-3.1-asr-flash"
FILES = "qwen3-asr-flash-filetrans"


def wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    data = bytes(int(seconds * rate))
    head = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
    size = struct.pack("<I", 36 + len(data))
    return b"RIFF" + size + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=20
    ) as made:
        yield made


def transcribed(client: openai.OpenAI, sound: bytes | None = None, **options: Any) -> Any:
    given: dict[str, Any] = {"model": FLASH, "file": ("a.wav", sound or wav()), **options}
    return client.audio.transcriptions.create(**given)


@pytest.mark.parametrize("model", [FLASH, AUDIO, FILES, "fun-asr"])
def test_json_and_text(client: openai.OpenAI, model: str) -> None:
    assert transcribed(client, model=model, language="en").text == TEXT
    assert transcribed(client, model=model, response_format="text") == TEXT + "\n"


@pytest.mark.parametrize("model", [FLASH, AUDIO, FILES])
def test_events(client: openai.OpenAI, model: str) -> None:
    events = list(transcribed(client, model=model, stream=True))

    assert "".join(each.delta for each in events[:-1]) == TEXT
    assert [each.type for each in events][-2:] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == TEXT


def test_the_asynchronous_client(proxy: Proxy, sandbox: Sandbox) -> None:
    async def ask() -> tuple[Any, ...]:
        async with openai.AsyncOpenAI(
            base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=20
        ) as client:
            create, file = client.audio.transcriptions.create, ("noise", wav())
            whole = await create(model=FLASH, file=file)
            events = await create(model=FLASH, file=file, stream=True)
            types = [each.type async for each in events]
            timed = await create(model=FLASH, file=file, response_format="verbose_json")
            return whole.text, types, timed

    text, types, timed = asyncio.run(ask())

    assert text == timed.text == TEXT
    assert types[0] == "transcript.text.delta"
    assert types[-1] == "transcript.text.done"
    assert [each.text for each in timed.segments] == [
        "Hello from the sandbox.",
        "It hears every sound alike.",
    ]


@pytest.mark.parametrize("model", [FLASH, AUDIO])
def test_a_client_that_leaves_a_stream_frees_its_upstream(
    proxy: Proxy, sandbox: Sandbox, model: str
) -> None:
    route = "chat" if model == FLASH else "generation"
    # The first event of a chat has no text.
    sandbox.control(next={"route": route, "spec": "stall-after=2"})
    id = f"leaving-{route}"
    with requests.post(
        proxy.base_url + "/audio/transcriptions",
        data={"model": model, "stream": "true"},
        files={"file": wav()},
        headers={"Authorization": f"Bearer {CLIENT_KEY}", "X-Request-Id": id},
        stream=True,
        timeout=10,
    ) as answer:
        next(answer.iter_lines())

    assert proxy.wait_for_call(id)["outcome"] == "client_gone"
    assert sandbox.settle()


def test_text_arrives_before_its_end(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "generation", "spec": "stall-after=1"})
    with transcribed(client, model=AUDIO, stream=True) as events:
        assert TEXT.startswith(next(iter(events)).delta)


def test_words_and_segments(client: openai.OpenAI) -> None:
    answer = transcribed(
        client,
        wav(3.5),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )

    assert (answer.text, answer.duration, answer.language) == (TEXT, 3.5, "en")
    assert [(each.id, each.start, each.end) for each in answer.segments] == [
        (0, 0.0, 1.6),
        (1, 1.6, 3.6),
    ]
    assert [each.word for each in answer.words][:2] == ["Hello", "from"]
    assert answer.words[-1].end == 3.6


def test_words_only(client: openai.OpenAI) -> None:
    answer = transcribed(
        client, response_format="verbose_json", timestamp_granularities=["word"], model=FILES
    )

    assert answer.segments is None
    assert len(answer.words) == 9


def test_subtitles(client: openai.OpenAI) -> None:
    srt = transcribed(client, response_format="srt")
    vtt = transcribed(client, response_format="vtt")

    assert srt.splitlines()[:3] == [
        "1",
        "00:00:00,000 --> 00:00:01,600",
        "Hello from the sandbox.",
    ]
    assert vtt.splitlines()[:3] == ["WEBVTT", "", "00:00:00.000 --> 00:00:01.600"]


def test_a_large_file_is_stored_and_transcribed(client: openai.OpenAI, sandbox: Sandbox) -> None:
    """What is stored is what the client sent, byte by byte."""
    sound = b"OggS" + bytes(range(256)) * 40_000
    raw = client.audio.transcriptions.with_raw_response.create(
        model=FLASH, file=("a.ogg", sound), temperature=0.7
    )

    assert raw.headers["x-qwen-proxy-changed"] == f"model:{FILES}, temperature:dropped"
    assert raw.parse().text == TEXT
    ((model, stored),) = sandbox._world.media.stored.values()
    assert (model, stored == sound) == (FILES, True)


@pytest.mark.parametrize(
    ("route", "spec", "status"),
    [
        ("chat", "throttle", 429),
        ("uploads", "throttle", 429),
        ("storage", "status=500", 502),
        ("file-task", "task-ends=FAILED", 502),
        ("file-task", "lost-answer", 502),
        ("results", "cut-after", 502),
    ],
)
def test_failures(
    client: openai.OpenAI, sandbox: Sandbox, route: str, spec: str, status: int
) -> None:
    sandbox.control(next={"route": route, "spec": spec, "count": 10})
    with pytest.raises(openai.APIStatusError) as raised:
        transcribed(client, response_format="json" if route == "chat" else "srt")

    assert raised.value.status_code == status


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translations_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="translates speech"):
        client.audio.translations.create(model=FLASH, file=("a.wav", wav()))


def test_strict_mode(sandbox: Sandbox, start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_STRICT="1",
    )
    with openai.OpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match=FILES):
            transcribed(client, response_format="vtt")
        with pytest.raises(openai.BadRequestError, match="include"):
            transcribed(client, include=["logprobs"])
        assert transcribed(client, model=FILES, response_format="vtt").startswith("WEBVTT")


def test_a_client_that_leaves_cancels_its_task(proxy: Proxy, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "file-task", "spec": "task-looks=1000"})
    headers = {"Authorization": f"Bearer {CLIENT_KEY}", "X-Request-Id": "leaving-transcript"}
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            proxy.base_url + "/audio/transcriptions",
            data={"model": FILES},
            files={"file": wav()},
            headers=headers,
            timeout=2,
        )

    assert proxy.wait_for_call("leaving-transcript")["outcome"] == "client_gone"
    assert sandbox.wait_until(
        lambda: any(each.path.endswith("/cancel") for each in sandbox.requests), 5
    )
