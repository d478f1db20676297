"""Whole streams as DashScope sends them, each at every cut: what a client gets of them.

A case is a pair of files in `tests/corpus/sse`: the bytes of the upstream, and what must come of
them. To add one, write both.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion
from tests.protocol.feeding import ways_to_cut

CORPUS = Path(__file__).parent.parent / "corpus/sse"
CASES = sorted(CORPUS.glob("*.sse"))


def expectation(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return loaded


def cases_with(key: str) -> list[Path]:
    return [path for path in CASES if expectation(path)[key] is not None]


def relayed(pieces: list[bytes], *, hide_usage: bool) -> tuple[bytes, ChunkStream]:
    """What a client gets of the pieces, and what was seen on the way."""
    blocks = sse.EventBlocks()
    stream = ChunkStream(hide_usage=hide_usage)
    out = b""
    for piece in pieces:
        if block := blocks.push(piece):
            out += stream.feed(block)
    return out, stream


def test_the_corpus_is_complete() -> None:
    assert len(CASES) >= 12
    assert {path.stem for path in CASES} == {path.stem for path in CORPUS.glob("*.json")}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("hide_usage", [False, True], ids=["usage shown", "usage hidden"])
def test_a_stream_is_understood_at_every_cut(path: Path, hide_usage: bool) -> None:
    expected = expectation(path)
    whole = path.read_bytes()
    first, _ = relayed([whole], hide_usage=hide_usage)
    assert_fit_for_clients(first)

    for how, pieces in ways_to_cut(whole):
        out, stream = relayed(pieces, hide_usage=hide_usage)

        assert out == first, how
        seen = {name: getattr(stream, name) for name in expected["state"]}
        assert seen == expected["state"], how
        usage = dataclasses.asdict(stream.usage) if stream.usage else None
        assert usage == expected["usage"], how
        key = "events_with_usage_hidden" if hide_usage else "events"
        assert len(list(sse.events(out))) == expected[key], how


@pytest.mark.parametrize("path", cases_with("completion"), ids=lambda path: path.stem)
def test_a_stream_becomes_the_completion_that_a_client_without_stream_gets(path: Path) -> None:
    out, _ = relayed([path.read_bytes()], hide_usage=False)
    completion = Completion()
    for event in sse.events(out):
        completion.add(sse.parse(event))

    rendered = completion.render(id="unused", model="unused", created=0)

    assert rendered == expectation(path)["completion"]


@pytest.mark.parametrize("path", cases_with("completion"), ids=lambda path: path.stem)
def test_what_is_carried_is_not_rewritten(path: Path) -> None:
    """Every payload that a client gets stands in the upstream's bytes, to the letter."""
    upstream = path.read_bytes()
    out, _ = relayed([upstream], hide_usage=True)
    for event in sse.events(out):
        assert (sse.data(event) or b"") in upstream


def assert_fit_for_clients(out: bytes) -> None:
    """What the official SDKs need: data lines only, JSON in each, a blank line at the end."""
    assert out == b"" or out.endswith(b"\n\n")
    assert b"\r" not in out
    for event in sse.events(out):
        assert event.startswith(b"data:")
        value = json.loads(sse.data(event) or b"")
        assert isinstance(value, dict)
        assert chat.error_of(value) is not None or "choices" in value
