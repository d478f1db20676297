"""What a newcomer tries after `make run`: each endpoint at the built-in sandbox, no account set."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator

import openai
import pytest

from tests.kit.proxy import Proxy, start
from tests.kit.servers import wait_until

pytestmark = [
    pytest.mark.server,
    # The package calls its videos deprecated since OpenAI's own service was to end.
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    running: Proxy = start(tmp_path_factory.mktemp("first"), {"QWEN_PROXY_SANDBOX": "auto"})
    with openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0, timeout=20) as made:
        yield made
    running.stop()


def a_second() -> tuple[str, bytes]:
    made = io.BytesIO()
    with wave.open(made, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(b"\0\1" * 16_000)
    return "a.wav", made.getvalue()


def test_texts(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="qwen3.7-plus", messages=[{"role": "user", "content": "hi"}]
    )

    assert "hi" in (chat.choices[0].message.content or "")
    assert "hi" in client.responses.create(model="qwen3.7-plus", input="hi").output_text
    assert client.completions.create(model="qwen2.5-coder-32b-instruct", prompt="hi").choices
    assert client.embeddings.create(model="text-embedding-v4", input="hi").data[0].embedding


def test_pictures(client: openai.OpenAI) -> None:
    itself = client.images.generate(
        model="qwen-image-3.0", prompt="a cat", response_format="b64_json"
    )
    address = client.images.generate(model="qwen-image-3.0", prompt="a cat")

    assert itself.data and itself.data[0].b64_json
    assert base64.b64decode(itself.data[0].b64_json).startswith(b"\x89PNG")
    assert address.data and address.data[0].url


def test_sound(client: openai.OpenAI) -> None:
    speech = client.audio.speech.create(
        model="qwen3-tts-flash", input="[[sandbox: no-pieces]] hello", voice="alloy"
    )
    text = client.audio.transcriptions.create(model="qwen3-asr-flash", file=a_second())
    times = client.audio.transcriptions.create(
        model="qwen3-asr-flash",
        file=a_second(),
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )

    assert speech.content.startswith(b"RIFF")
    assert text.text == times.text
    assert times.words


def test_a_video(client: openai.OpenAI) -> None:
    id = client.videos.create(model="wan2.7-t2v", prompt="the sea [[sandbox: task-looks=1]]").id

    wait_until(lambda: client.videos.retrieve(id).status == "completed", "the video")
    assert b"ftyp" in client.videos.download_content(id).content[:16]


def test_a_file(client: openai.OpenAI) -> None:
    made = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")

    assert client.files.content(made.id).content == b"{}\n"
    assert client.files.delete(made.id).deleted
