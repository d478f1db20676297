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
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion
from tests.kit.feeding import ways_to_cut

CORPUS = Path(__file__).parents[2] / "corpus/sse"
CASES = sorted(CORPUS.glob("*.sse"))


def expectation(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return loaded


def cases_with(key: str) -> list[Path]:
    return [path for path in CASES if expectation(path)[key] is not None]


def relayed(pieces: list[bytes], **arguments: Any) -> tuple[bytes, ChunkStream]:
    """What a client gets of the pieces, and what was seen on the way."""
    blocks = sse.EventBlocks()
    stream = ChunkStream(**arguments)
    out = b""
    for piece in pieces:
        if block := blocks.push(piece):
            out += stream.feed(block)
    return out + stream.end(), stream


def values_of(out: bytes) -> list[dict[str, Any]]:
    return [sse.parse(event) for event in sse.events(out)]


def test_the_corpus_is_complete() -> None:
    assert len(CASES) >= 48
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
        if usage is not None:
            explicit = path.name.startswith("032")
            assert usage.pop("explicit_cache") is explicit
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
def test_openais_own_client_puts_together_the_same(path: Path) -> None:
    """Each chunk passes its types, and its sum of them all is what we say it is."""
    out, _ = relayed([path.read_bytes()], hide_usage=False)
    state = ChatCompletionStreamState()
    for value in values_of(out):
        state.handle_chunk(ChatCompletionChunk.model_validate(value))

    summed = state.current_completion_snapshot.model_dump(exclude_none=True)

    expected = expectation(path)["completion"]
    for ours, theirs in zip(expected["choices"], summed["choices"], strict=True):
        message = theirs["message"]
        for call in message.get("tool_calls") or ():
            del call["index"]  # its own mark
        fields = {name: value for name, value in ours["message"].items() if value is not None}
        assert {name: message.get(name) for name in fields} == fields
        assert theirs["finish_reason"] == ours["finish_reason"]
    if usage := expected.get("usage"):
        assert summed["usage"]["total_tokens"] == usage["total_tokens"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_model_has_the_clients_name_at_every_cut(path: Path) -> None:
    """Whatever else is done to a stream; and nothing else is done for it."""
    whole = path.read_bytes()
    name = 'mine "é"\n'
    plain = values_of(relayed([whole], hide_usage=False)[0])
    expected = [{**value, "model": name} if "model" in value else value for value in plain]

    for how, pieces in ways_to_cut(whole):
        out, _ = relayed(pieces, hide_usage=False, model=("qwen3.7-plus-upstream", name))

        assert values_of(out) == expected, how


#: Streams with tool calls, finishes and values that clients cannot use, from whichever host.
UNFIT = {18, 19, 20, 21, 22, 23, 24, 25, 28, 33, 34, 36, 37, *range(38, 46)}
FIT = [path for path in cases_with("completion") if int(path.stem[:3]) not in UNFIT | {3, 4, 35}]


@pytest.mark.parametrize("path", cases_with("completion"), ids=lambda path: path.stem)
@pytest.mark.parametrize("normalize", [True, False], ids=["a Qwen host", "another host"])
def test_every_choice_ends_with_one_finish_before_the_usage(path: Path, normalize: bool) -> None:
    values = values_of(relayed([path.read_bytes()], hide_usage=False, normalize=normalize)[0])
    begun: list[int] = []
    ended: list[int] = []
    for value in values:
        ChatCompletionChunk.model_validate(value)
        for choice in value["choices"]:
            begun.append(choice["index"])
            if choice["finish_reason"] is not None:
                ended.append(choice["index"])
        if not value["choices"]:
            assert set(ended) == set(begun)
    assert sorted(ended) == sorted(set(begun))


@pytest.mark.parametrize("path", cases_with("completion"), ids=lambda path: path.stem)
def test_another_host_gives_the_same_answer_at_every_cut(path: Path) -> None:
    upstream = path.read_bytes()
    first, _ = relayed([upstream], hide_usage=False, normalize=False)
    for how, pieces in ways_to_cut(upstream):
        assert relayed(pieces, hide_usage=False, normalize=False)[0] == first, how


@pytest.mark.parametrize("path", FIT, ids=lambda path: path.stem)
def test_what_another_host_sends_as_openai_does_is_not_rewritten(path: Path) -> None:
    """Every payload that a client gets stands in the upstream's bytes, to the letter."""
    upstream = path.read_bytes()
    for how, pieces in ways_to_cut(upstream):
        out, _ = relayed(pieces, hide_usage=False, normalize=False)
        rest = upstream
        for event in sse.events(out):
            _, found, rest = rest.partition(sse.data(event) or b"-")
            assert found, how
        assert b"choices" not in rest


def assert_fit_for_clients(out: bytes) -> None:
    """What the official SDKs need: data lines only, JSON in each, a blank line at the end."""
    assert out == b"" or out.endswith(b"\n\n")
    assert b"\r" not in out
    for event in sse.events(out):
        assert event.startswith(b"data:")
        value = json.loads(sse.data(event) or b"")
        assert isinstance(value, dict)
        assert chat.error_of(value) is not None or "choices" in value
