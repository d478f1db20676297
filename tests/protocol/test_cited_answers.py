"""The pages of a web search in every dialect: streamed, whole, and as the next turn's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from qwen_wsgi.protocol import messages, responses, sse
from qwen_wsgi.protocol.chat import ChatEncoder, ChunkStream, Completion, cited
from qwen_wsgi.protocol.chat.completion import combined
from qwen_wsgi.protocol.json_object import JsonObject, compact
from tests.kit import messages_sdk
from tests.kit.feeding import ways_to_cut
from tests.kit.properties import examples
from tests.kit.quirks import chunk, fed, stream_of
from tests.schemas import check_but_for_nulls, check_event

CORPUS = Path(__file__).parents[1] / "corpus/sse"
TIDES, FERRY = (
    ("Tides today", "https://harbour.example/tides"),
    ("The ferry", "https://ferry.example/"),
)
#: The places that the answers of the corpus cite, with the pages.
CITED = {
    "046-pages-of-a-search": [("[1]", *TIDES), ("[ref_2]", *FERRY), ("[1]", *TIDES)],
    "047-pages-behind-the-text": [("[1]", *TIDES), ("[2]", *FERRY)],
    "048-annotations-of-a-host": [("harbour.example", *TIDES)],
}
#: The text blocks of Messages, and the pages of each.
BLOCKS = {
    "046-pages-of-a-search": [
        ("High water is at noon[1]", [TIDES]),
        (". The ferry waits[ref_2][1]", [FERRY, TIDES]),
        (":\n```\nrow[1]\n```\nSo they say[9].", []),
    ],
    "047-pages-behind-the-text": [
        ("High water is at noon[1]. The ferry waits[2].", [TIDES, FERRY]),
    ],
    "048-annotations-of-a-host": [("Noon (harbour.example).", [TIDES])],
}
#: The same of a whole answer, where they differ: all pages are known from its beginning.
WHOLE_BLOCKS = BLOCKS | {
    "047-pages-behind-the-text": [
        ("High water is at noon[1]", [TIDES]),
        (". The ferry waits[2]", [FERRY]),
        (".", []),
    ],
}
NAMES = pytest.mark.parametrize("name", CITED)
ID = "resp_0123456789abcdef"
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def stream(name: str) -> bytes:
    return (CORPUS / f"{name}.sse").read_bytes()


def relayed(upstream: bytes, *, normalize: bool = True) -> bytes:
    return fed(ChunkStream(hide_usage=False, normalize=normalize), [upstream])


def completion_of(upstream: bytes) -> dict[str, Any]:
    """The whole answer as it is put together of a stream."""
    completion = Completion()
    for event in sse.events(relayed(upstream)):
        completion.add(sse.parse(event))
    return completion.render(id="c", model="m", created=1)


def body(**members: Any) -> JsonObject:
    return JsonObject(compact({"model": "qwen3.7-plus", **members}).encode())


def places(text: str, annotations: list[Any]) -> list[tuple[str, str, str]]:
    found = []
    for each in annotations:
        assert each["type"] == "url_citation"
        source = each.get("url_citation", each)
        place = text[source["start_index"] : source["end_index"]]
        found.append((place, source["title"], source["url"]))
    return found


# --- chat -----------------------------------------------------------------------------------------


def encoded_in_chat(pieces: list[bytes]) -> list[dict[str, Any]]:
    chunks = ChunkStream(hide_usage=False)
    encoder = cited.CitingEncoder(id="c", model="m", created=1)
    blocks = sse.EventBlocks()
    out = b"".join(encoder.feed(chunks.feed(block)) for block in map(blocks.push, pieces) if block)
    out += encoder.feed(chunks.end()) + encoder.end()
    assert out.endswith(sse.DONE)
    return [sse.parse(event) for event in sse.events(out)][:-1]


@NAMES
def test_chat_has_annotations_at_every_cut(name: str) -> None:
    for how, pieces in ways_to_cut(stream(name)):
        chunks = encoded_in_chat(pieces)

        deltas = [each["choices"][0]["delta"] for each in chunks if each["choices"]]
        text = "".join(delta.get("content") or "" for delta in deltas)
        annotated = [delta["annotations"] for delta in deltas if delta.get("annotations")]
        assert len(annotated) == 1, how  # openai-node keeps the last list alone
        assert places(text, annotated[0]) == CITED[name], how
        finishes = [each["choices"][0]["finish_reason"] for each in chunks if each["choices"]]
        assert finishes[-1] == "stop"
        assert finishes.count("stop") == 1


@NAMES
def test_openais_own_clients_read_them(name: str) -> None:
    state = ChatCompletionStreamState()
    for each in encoded_in_chat([stream(name)]):
        state.handle_chunk(ChatCompletionChunk.model_validate(each))

        check_but_for_nulls("chat#chunk", each)

    message = state.get_final_completion().choices[0].message

    assert message.content
    annotations = [each.model_dump() for each in message.annotations or ()]
    assert places(message.content, annotations) == CITED[name]


@NAMES
def test_a_whole_chat_answer_has_the_same(name: str) -> None:
    value = cited.completion(completion_of(stream(name)))

    ChatCompletion.model_validate(value, strict=True)
    check_but_for_nulls("chat#completion", value)
    message = value["choices"][0]["message"]
    assert places(message["content"], message["annotations"]) == CITED[name]
    assert cited.completion(value) is value


INFO = {"search_results": [{"index": 1, "title": "A", "url": "https://a.example/"}]}
PAGE = {"title": "A", "url": "https://a.example/"}


def test_pages_that_the_text_does_not_name_stand_at_its_end() -> None:
    message = {"role": "assistant", "content": "So they say."}
    value = {"choices": [{"index": 0, "message": message}], "search_info": INFO}

    (annotation,) = cited.completion(value)["choices"][0]["message"]["annotations"]

    assert annotation["url_citation"] == {**PAGE, "start_index": 12, "end_index": 12}


@pytest.mark.parametrize(
    "value",
    [
        {"choices": [{"index": 0, "message": {"content": "So[1]."}}]},
        {"choices": [{"index": 0, "message": {"content": None}}], "search_info": INFO},
        {"choices": [{"message": None}, 5], "search_info": INFO},
        {"choices": None, "search_info": INFO},
        {"choices": [{"message": {"content": "So[1]."}}], "search_info": {"search_results": 5}},
    ],
    ids=str,
)
def test_nothing_is_made_up_in_chat(value: dict[str, Any]) -> None:
    assert cited.completion(value) is value
    events = [{**each, "delta": {}} for each in value["choices"] or () if isinstance(each, dict)]
    out = sse.render({**value, "choices": events})
    assert cited.CitingEncoder(id="c", model="m", created=1).feed(out) == out


def test_text_in_the_chunk_of_the_finish_and_several_choices() -> None:
    encoder = cited.CitingEncoder(id="c", model="m", created=1)
    sent = encoder.feed(
        stream_of(
            chunk({"content": "a[1]"}, index=1, search_info=INFO),
            chunk({"content": "b["}, search_info=INFO),
            chunk({"content": "1]"}, "stop"),
            chunk({}, "stop", index=1),
            chunk({}, "stop", index=1),
            b": not an event\n\n",
        )
    )

    values = [sse.parse(event) for event in sse.events(sent)]
    found = {
        (choice["index"], choice["finish_reason"]): choice["delta"]
        for each in values
        if each
        for choice in each["choices"]
        if "annotations" in choice["delta"]
    }
    assert found.keys() == {(0, "stop"), (1, None)}
    assert found[0, "stop"]["content"] == "1]"
    both = [each["annotations"][0]["url_citation"] for each in found.values()]
    assert [(each["start_index"], each["end_index"]) for each in both] == [(1, 4), (1, 4)]


def test_choices_of_several_calls_have_the_pages_of_their_own_searches() -> None:
    def answer(url: str) -> dict[str, Any]:
        results = [{"index": 1, "title": url, "url": url}]
        message = {"role": "assistant", "content": "So[1]."}
        return {
            "choices": [{"index": 0, "message": message}],
            "search_info": {"search_results": results},
        }

    whole = cited.completion(combined([answer("https://a.example/"), answer("https://b.example/")]))

    urls = [each["message"]["annotations"][0]["url_citation"]["url"] for each in whole["choices"]]
    assert urls == ["https://a.example/", "https://b.example/"]


def test_who_requests_no_search_gets_the_bytes_as_they_are() -> None:
    for name in CITED:
        events = relayed(stream(name))
        assert ChatEncoder(id="c", model="m", created=1).feed(events) is events


# --- Responses ------------------------------------------------------------------------------------


def responses_request(**members: Any) -> responses.ResponsesRequest:
    return responses.parse_request(
        body(**{"input": "hi", "tools": [{"type": "web_search"}], **members})
    )


def encoded_in_responses(pieces: list[bytes]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    chunks = ChunkStream(hide_usage=False)
    encoder = responses.ResponseEncoder(responses_request(), id=ID, created=1, model="m")
    blocks = sse.EventBlocks()
    out = b"".join(encoder.feed(chunks.feed(block)) for block in map(blocks.push, pieces) if block)
    out += encoder.feed(chunks.end()) + encoder.end()
    assert encoder.response is not None
    events = [sse.parse(event) for event in sse.events(out)]
    for event in events:
        _EVENT.validate_python(event)
        check_event(event)
    return events, encoder.response


@NAMES
def test_responses_have_annotations_at_every_cut(name: str) -> None:
    for how, pieces in ways_to_cut(stream(name)):
        events, response = encoded_in_responses(pieces)

        Response.model_validate(response)
        text = "".join(each["delta"] for each in events if each["type"].endswith("text.delta"))
        added = [each for each in events if each["type"].endswith("annotation.added")]
        assert [each["annotation_index"] for each in added] == list(range(len(added)))
        assert places(text, [each["annotation"] for each in added]) == CITED[name], how
        (message,) = (item for item in response["output"] if item["type"] == "message")
        (part,) = message["content"]
        assert (part["text"], places(text, part["annotations"])) == (text, CITED[name])
        done = next(at for at, each in enumerate(events) if each["type"].endswith("text.done"))
        assert all(events.index(each) < done for each in added)


@NAMES
def test_a_whole_response_has_the_same(name: str) -> None:
    for value in (completion_of(stream(name)), cited.completion(completion_of(stream(name)))):
        response = responses.whole(responses_request(), value, id=ID, created=1, model="m")

        message = response["output"][-1]
        (part,) = message["content"]
        assert places(part["text"], part["annotations"]) == CITED[name]
        items = [{"role": "user", "content": "hi"}, *response["output"]]
        chat = responses.parse_request(
            body(input=[*items, {"role": "user", "content": "so?"}])
        ).chat
        said = [each["content"] for each in chat.body["messages"]]
        assert said == ["hi", part["text"], "so?"]


def test_a_later_text_counts_from_its_own_beginning() -> None:
    encoder = responses.ResponseEncoder(responses_request(), id=ID, created=1, model="m")
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    encoder.feed(
        stream_of(
            chunk({"content": "First[1]"}, search_info=INFO),
            chunk({"tool_calls": [call]}),
            chunk({"content": "so[1]"}),
        )
    )
    encoder.end()
    assert encoder.response is not None
    parts = [item["content"][0] for item in encoder.response["output"] if item["type"] == "message"]
    assert [places(part["text"], part["annotations"])[0][0] for part in parts] == ["[1]", "[1]"]


def test_without_a_search_responses_have_no_annotations() -> None:
    request = responses_request(tools=[])
    encoder = responses.ResponseEncoder(request, id=ID, created=1, model="m")
    encoder.feed(relayed(stream("046-pages-of-a-search")))
    encoder.end()
    assert encoder.response is not None
    assert encoder.response["output"][-1]["content"][0]["annotations"] == []


# --- Messages -------------------------------------------------------------------------------------

SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def messages_request(turn: list[Any] | None = None, **members: Any) -> messages.MessagesRequest:
    said = [{"role": "user", "content": "hi"}, *(turn or ())]
    return messages.parse_request(
        body(**{"max_tokens": 9, "tools": [SEARCH], **members}, messages=said)
    )


def blocks_of(message: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (
            block["text"],
            [(each["title"], each["url"]) for each in block.get("citations") or ()],
        )
        for block in message["content"]
        if block["type"] == "text"
    ]


def encoded_in_messages(pieces: list[bytes]) -> bytes:
    chunks = ChunkStream(hide_usage=False)
    encoder = messages_sdk.encoder(searches=True)
    blocks = sse.EventBlocks()
    out = b"".join(encoder.feed(chunks.feed(block)) for block in map(blocks.push, pieces) if block)
    return out + encoder.feed(chunks.end()) + encoder.end()


@NAMES
def test_messages_have_citations_at_every_cut(name: str) -> None:
    for how, pieces in ways_to_cut(stream(name)):
        encoded = encoded_in_messages(pieces)

        messages_sdk.check_order(messages_sdk.events(encoded))
        assert blocks_of(messages_sdk.accumulated(encoded)) == BLOCKS[name], how


@NAMES
def test_a_whole_message_has_the_same_and_can_be_sent_back(name: str) -> None:
    whole = messages.whole(messages_request(), completion_of(stream(name)), id="msg_1")

    Message.model_validate(whole)
    assert blocks_of(whole) == WHOLE_BLOCKS[name]
    turn = [{"role": "assistant", "content": whole["content"]}, {"role": "user", "content": "so?"}]
    chat = messages_request(turn).chat
    text = "".join(text for text, _ in BLOCKS[name])
    assert [each["content"] for each in chat.body["messages"]] == ["hi", text, "so?"]


@pytest.mark.parametrize("request_", [{"tools": []}, {}], ids=["no tool", "a tool"])
def test_without_pages_a_message_is_as_it_was(request_: dict[str, Any]) -> None:
    text = "So[1] and[ref_2] on [1"
    upstream = stream_of(*(chunk({"content": each}) for each in text), chunk({}, "stop"), sse.DONE)
    request = messages_request(**request_)
    encoder = messages_sdk.encoder(searches=request.searches)
    streamed = messages_sdk.accumulated(encoder.feed(relayed(upstream)) + encoder.end())

    whole = messages.whole(request, completion_of(upstream), id="msg_1")

    assert streamed["content"] == whole["content"] == [{"type": "text", "text": text}]


def test_a_text_ends_before_thinking_and_calls() -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    upstream = stream_of(
        chunk({"content": "First[1"}, search_info=INFO),
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "] so[1]"}),
        chunk({"tool_calls": [call]}),
        chunk({}, "tool_calls"),
        sse.DONE,
    )
    message = messages_sdk.accumulated(encoded_in_messages([upstream]))

    kinds = [block["type"] for block in message["content"]]
    assert kinds == [
        *("server_tool_use", "web_search_tool_result", "text", "thinking", "text", "tool_use")
    ]
    assert blocks_of(message) == [("First[1", []), ("] so[1]", [("A", "https://a.example/")])]


# --- any answer -----------------------------------------------------------------------------------

TEXTS = st.lists(
    st.sampled_from(["[1]", "[ref_2]", "[9]", "[", "1", "]", "`", "```\n", "\n", " ", "so"])
    | st.text(max_size=4),
    max_size=8,
)
PAGES = st.lists(
    st.fixed_dictionaries(
        {
            "index": st.integers(0, 9) | st.none() | st.just("1"),
            "title": st.text(max_size=3) | st.none(),
            "url": st.sampled_from(["https://a.example/", "https://b.example/", "", None]),
        }
    ),
    max_size=3,
)


@examples(150)
@given(TEXTS, PAGES, st.sampled_from([0, -1]))
def test_streamed_and_whole_answers_say_the_same(
    texts: list[str], pages: list[dict[str, Any]], at: int
) -> None:
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [*(chunk({"content": each}) for each in texts), chunk({}, "stop")]
    chunks[at]["search_info"] = {"search_results": pages}
    upstream = stream_of(*chunks, sse.DONE)
    value = completion_of(upstream)
    text = value["choices"][0]["message"]["content"] or ""

    streamed = [each for each in encoded_in_chat([upstream]) if each["choices"]]
    lists = [each["choices"][0]["delta"].get("annotations") for each in streamed]
    whole = cited.completion(value)["choices"][0]["message"].get("annotations")
    assert [each for each in lists if each] == ([whole] if whole else [])
    json.dumps(whole, allow_nan=False).encode()

    _, response = encoded_in_responses([upstream])
    ours = responses.whole(responses_request(), value, id=ID, created=1, model="m")
    found = [
        sorted(
            (each["start_index"], each["end_index"], each["url"])
            for item in each_response["output"]
            if item["type"] == "message"
            for each in item["content"][0]["annotations"]
        )
        for each_response in (response, ours)
    ]
    assert found[0] == found[1]

    message = messages_sdk.accumulated(encoded_in_messages([upstream]))
    assert "".join(each for each, _ in blocks_of(message)) == text
    whole_message = messages.whole(messages_request(), value, id="msg_1")
    assert "".join(each for each, _ in blocks_of(whole_message)) == text
    for content in (message["content"], whole_message["content"]):
        turn = [{"role": "assistant", "content": content}] if content else []
        messages_request([*turn, {"role": "user", "content": "so?"}])
