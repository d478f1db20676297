"""What a chunk costs more in another dialect than as chat, when nothing else runs.

    python -m benchmarks.encoders

`python -m benchmarks --only dialects` measures the same in a server whose streams take turns, where
the processor's caches know nothing of the last chunk.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChatEncoder, ChunkStream
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.messages.stream import MessagesEncoder
from qwen_wsgi.protocol.responses import ResponseEncoder, parse_request

_CHUNKS: Final = 20_000
_ROUNDS: Final = 5


def _responses() -> Encoder:
    asked = parse_request(
        JsonObject(b'{"input": "Say hello."}'), history=(), stored={}, seed="resp_0"
    )
    return ResponseEncoder(asked, id="resp_0", created=0, model="m")


_ENCODERS: Final[Mapping[str, Callable[[], Encoder]]] = {
    "chat": lambda: ChatEncoder(id="chatcmpl-0", model="m", created=0),
    "responses": _responses,
    "messages": lambda: MessagesEncoder(id="msg_0", model="m"),
}


def _chunk(number: int) -> bytes:
    delta = {"content": f"{number:020d}"}
    choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return sse.render({**head, "choices": [choice]})


def _us_of_a_chunk(encoder: Encoder, chunks: list[bytes]) -> float:
    stream = ChunkStream(hide_usage=True)
    begun = time.perf_counter()
    for chunk in chunks:
        encoder.feed(stream.feed(chunk))
    return (time.perf_counter() - begun) / len(chunks) * 1e6


def main() -> int:
    """Print a line for each dialect."""
    chunks = [_chunk(number) for number in range(_CHUNKS)]
    found = {
        name: min(_us_of_a_chunk(made(), chunks) for _ in range(_ROUNDS))
        for name, made in _ENCODERS.items()
    }
    for name, took_us in found.items():
        print(f"{name}: {took_us:.1f} µs a chunk, {took_us - found['chat']:.1f} more than chat")
    return 0


if __name__ == "__main__":
    sys.exit(main())
