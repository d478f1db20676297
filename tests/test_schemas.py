"""The schemas that answers are held to: sound, able to fail, no milder than OpenAI's own types; and
what our code tells of recorded streams, held to them."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from jsonschema import Draft202012Validator
from openai import types
from openai.types import chat, responses, shared
from openai.types.chat import chat_completion, chat_completion_chunk, chat_completion_message
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.responses import (
    response_function_web_search,
    response_output_item,
    response_output_text,
    response_reasoning_item,
    tool,
)

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion, chunks_of
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.responses import ResponseEncoder, parse_request
from tests.schemas import FILES, check, check_but_for_nulls, check_event, violations

pytestmark = pytest.mark.once

Schema = dict[str, Any]
Place = tuple[str | int, ...]

NAMES = [f"{file}#{name}" for file, value in FILES.items() for name in value["$defs"]]
EVENTS = [name for name in FILES["response_events"]["$defs"] if "." in name or name == "error"]

#: A value of each JSON type. 7 is a number, too; 1.5 is no integer.
SAMPLES = {
    "string": "word",
    "integer": 7,
    "number": 1.5,
    "boolean": True,
    "null": None,
    "array": [],
    "object": {},
}
NO_SUCH_WORD = "no such word"


def resolved(schema: Schema, file: str) -> tuple[Schema, str]:
    """What a `$ref` points to, and the file that it stands in."""
    while "$ref" in schema:
        target, _, pointer = schema["$ref"].partition("#/$defs/")
        file = target.removesuffix(".json") or file
        schema = FILES[file]["$defs"][pointer]
    return schema, file


def alternatives(schema: Schema, file: str) -> list[tuple[Schema, str]]:
    """The schemas of an `anyOf`, to the bottom; or the one schema."""
    schema, file = resolved(schema, file)
    if "anyOf" not in schema:
        return [(schema, file)]
    return [leaf for one in schema["anyOf"] for leaf in alternatives(one, file)]


def types_of(schema: Schema, file: str) -> set[str]:
    """The JSON types that a schema lets through."""
    found: set[str] = set()
    for leaf, _ in alternatives(schema, file):
        kind = leaf["type"]
        found |= {kind} if isinstance(kind, str) else set(kind)
    return found | ({"integer"} if "number" in found else set())


def example(schema: Schema, file: str) -> Any:
    """A document with everything that the schema names; of alternatives the first."""
    schema, file = alternatives(schema, file)[0]
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "array":
        return [example(schema["items"], file)]
    if kind == "object":
        made = {name: example(one, file) for name, one in schema.get("properties", {}).items()}
        if isinstance(schema.get("additionalProperties"), dict):
            made["other"] = example(schema["additionalProperties"], file)
        return made
    return SAMPLES[kind]


def properties(
    schema: Schema, file: str, at: Place = ()
) -> Iterator[tuple[Place, bool, Schema, str]]:
    """Each property inside `example`: where it stands, if it is required, its schema."""
    schema, file = alternatives(schema, file)[0]
    for name, one in schema.get("properties", {}).items():
        yield (*at, name), name in schema.get("required", ()), one, file
        yield from properties(one, file, (*at, name))
    if "items" in schema:
        yield from properties(schema["items"], file, (*at, 0))


def changed(document: Any, path: Place, value: Any) -> Any:
    made = copy.deepcopy(document)
    holder = made
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return made


def without(document: Any, path: Place) -> Any:
    made = copy.deepcopy(document)
    holder = made
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    return made


def of(name: str) -> tuple[Schema, str]:
    file, _, definition = name.partition("#")
    return FILES[file]["$defs"][definition], file


def objects(schema: Any) -> Iterator[Schema]:
    """Every object schema inside a file."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_json_schema_and_requires_nothing_that_it_does_not_describe(file: str) -> None:
    Draft202012Validator.check_schema(FILES[file])
    for schema in objects(FILES[file]):
        assert set(schema.get("required", ())) <= set(schema.get("properties", ()))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_document_obeys(name: str) -> None:
    check(name, example(*of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_document_with_nothing_but_what_is_required_obeys(name: str) -> None:
    document = example(*of(name))
    optional = [path for path, required, _, _ in properties(*of(name)) if not required]
    for path in reversed(optional):
        document = without(document, path)

    check(name, document)


@pytest.mark.parametrize("name", NAMES)
def test_a_document_without_a_required_field_is_refused(name: str) -> None:
    schema, file = of(name)
    document = example(schema, file)
    for path, required, _, _ in properties(schema, file):
        assert bool(violations(name, without(document, path))) == required, path


@pytest.mark.parametrize("name", NAMES)
def test_a_document_with_a_value_of_a_wrong_type_is_refused(name: str) -> None:
    schema, file = of(name)
    document = example(schema, file)
    for path, _, one, where in properties(schema, file):
        for kind in set(SAMPLES) - types_of(one, where):
            assert violations(name, changed(document, path, SAMPLES[kind])), (path, kind)


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_is_none_of_the_known_ones_is_refused(name: str) -> None:
    schema, file = of(name)
    document = example(schema, file)
    for path, _, one, where in properties(schema, file):
        if all("enum" in leaf for leaf, _ in alternatives(one, where)):
            assert violations(name, changed(document, path, NO_SUCH_WORD)), path


@pytest.mark.parametrize("kind", [name for name in NAMES if "anyOf" in of(name)[0]])
def test_every_alternative_obeys_and_fails_by_itself(kind: str) -> None:
    for schema, file in alternatives(*of(kind)):
        document = example(schema, file)
        check(kind, document)
        for path, required, _, _ in properties(schema, file):
            assert bool(violations(kind, without(document, path))) == required, path


def test_an_event_is_held_to_the_schema_of_its_type() -> None:
    event = example(*of("response_events#response.output_text.delta"))
    check_event(event)
    wrongs: tuple[Any, ...] = ({**event, "type": "response.sung"}, {**event, "delta": 1}, [], {})
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            check_event(wrong)


#: The package's own types, made from the same document.
MODELS: dict[str, Any] = {
    "chat#completion": chat.ChatCompletion,
    "chat#choice": chat_completion.Choice,
    "chat#message": chat.ChatCompletionMessage,
    "chat#annotation": chat_completion_message.Annotation,
    "chat#function": chat_completion_message.FunctionCall,
    "chat#function_tool_call": chat.ChatCompletionMessageFunctionToolCall,
    "chat#custom_tool_call": chat.ChatCompletionMessageCustomToolCall,
    "chat#logprobs": chat_completion.ChoiceLogprobs,
    "chat#token_logprob": chat.ChatCompletionTokenLogprob,
    "chat#top_logprob": TopLogprob,
    "chat#chunk": chat.ChatCompletionChunk,
    "chat#chunk_choice": chat_completion_chunk.Choice,
    "chat#delta": chat_completion_chunk.ChoiceDelta,
    "chat#tool_call_chunk": chat_completion_chunk.ChoiceDeltaToolCall,
    "chat#usage": types.CompletionUsage,
    "completions#completion": types.Completion,
    "completions#choice": types.CompletionChoice,
    "embeddings#response": types.CreateEmbeddingResponse,
    "embeddings#embedding": types.Embedding,
    "models#model": types.Model,
    "error#error": shared.ErrorObject,
    "responses#response": responses.Response,
    "responses#error": responses.ResponseError,
    "responses#usage": responses.ResponseUsage,
    "responses#reasoning_config": shared.Reasoning,
    "responses#text_config": responses.ResponseTextConfig,
    "responses#function_tool": responses.FunctionTool,
    "responses#custom_tool": responses.CustomTool,
    "responses#allowed_tools_choice": responses.ToolChoiceAllowed,
    "responses#message": responses.ResponseOutputMessage,
    "responses#output_text": responses.ResponseOutputText,
    "responses#refusal": responses.ResponseOutputRefusal,
    "responses#url_citation": response_output_text.AnnotationURLCitation,
    "responses#file_citation": response_output_text.AnnotationFileCitation,
    "responses#token_logprob": response_output_text.Logprob,
    "responses#reasoning": responses.ResponseReasoningItem,
    "responses#summary_text": response_reasoning_item.Summary,
    "responses#function_call": responses.ResponseFunctionToolCall,
    "responses#custom_tool_call": responses.ResponseCustomToolCall,
    "responses#web_search_call": responses.ResponseFunctionWebSearch,
    "responses#image_generation_call": response_output_item.ImageGenerationCall,
    "responses#image_generation_tool": tool.ImageGeneration,
    "responses#mcp_choice": responses.ToolChoiceMcp,
    "responses#mcp_call": response_output_item.McpCall,
    "responses#mcp_list_tools": response_output_item.McpListTools,
    "responses#mcp_approval_request": response_output_item.McpApprovalRequest,
    "responses#mcp_approval_response": response_output_item.McpApprovalResponse,
    "responses#mcp_tool": tool.Mcp,
    "responses#search_action": response_function_web_search.ActionSearch,
    "responses#open_page_action": response_function_web_search.ActionOpenPage,
    "responses#find_action": response_function_web_search.ActionFind,
    "responses#input_items": responses.ResponseItemList,
    "responses#input_message": responses.ResponseInputMessageItem,
    "responses#input_text": responses.ResponseInputText,
    "responses#input_image": responses.ResponseInputImage,
    "responses#input_file": responses.ResponseInputFile,
    "responses#stored_function_call": responses.ResponseFunctionToolCallItem,
    "responses#function_call_output": responses.ResponseFunctionToolCallOutputItem,
    "responses#stored_custom_tool_call": responses.ResponseCustomToolCallItem,
    "responses#custom_tool_call_output": responses.ResponseCustomToolCallOutputItem,
    "responses#input_tokens": responses.InputTokenCountResponse,
}


def event_models() -> dict[str, Any]:
    """The package's types for the events of a stream, by the word in their `type`."""
    union = typing.get_args(responses.ResponseStreamEvent)[0]
    return {
        word: model
        for model in typing.get_args(union)
        for word in typing.get_args(model.model_fields["type"].annotation)
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_knows_no_field_less_required_than_the_package_does(name: str) -> None:
    _compare(*of(name), MODELS[name])


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_has_the_fields_that_the_package_reads(event: str) -> None:
    _compare(*of(f"response_events#{event}"), event_models()[event])


def _compare(schema: Schema, file: str, model: type[pydantic.BaseModel]) -> None:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    described = set(schema["properties"])
    assert described <= set(fields)
    needed = {name for name, field in fields.items() if field.is_required()}
    assert needed <= set(schema.get("required", ()))
    # And what the schema takes, the package takes: it is the same thing under the same name.
    model.model_validate(example(schema, file), strict=True)


# --- what our code tells of what upstreams were seen to send --------------------------------------

CORPUS = sorted((Path(__file__).parent / "corpus" / "sse").glob("*.sse"), key=lambda p: p.name)


def normalized(raw: bytes) -> bytes:
    """The events of an upstream's stream as they are told to encoders."""
    stream = ChunkStream(hide_usage=False)
    return stream.feed(sse.EventBlocks().push(raw)) + stream.end()


@pytest.mark.parametrize("stream", CORPUS, ids=lambda path: path.stem)
def test_chunks_and_what_is_put_together_of_them_obey(stream: Path) -> None:
    completion = Completion()
    for event in sse.events(normalized(stream.read_bytes())):
        chunk = sse.parse(event)
        if "error" in chunk:
            check("error#envelope", chunk)
            continue
        check_but_for_nulls("chat#chunk", chunk)
        completion.add(chunk)
    whole = completion.render(id="chatcmpl-1", model="m", created=1)
    check_but_for_nulls("chat#completion", whole)
    for event in chunks_of(whole, with_usage=True):
        check_but_for_nulls("chat#chunk", sse.parse(event))


SEARCH = {
    "search_info": {
        "search_results": [{"index": 1, "title": "A page", "url": "https://a.example/"}]
    }
}
CITATION = {
    "type": "url_citation",
    "url_citation": {"start_index": 0, "end_index": 2, "title": "A", "url": "https://a.example/"},
}
LOGPROB = {"token": "Hi", "logprob": -0.25, "bytes": None, "top_logprobs": []}
DELTAS: tuple[dict[str, Any], ...] = (
    {"delta": {"role": "assistant", "content": "", **SEARCH}},
    {"delta": {"reasoning_content": "Hm."}},
    {"delta": {"content": "Hi"}, "logprobs": {"content": [LOGPROB], "refusal": None}},
    {"delta": {"content": " there"}},
    {"delta": {"annotations": [CITATION]}},
    {"delta": {"refusal": "No."}},
    {"delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}},
    {
        "delta": {
            "tool_calls": [
                {"index": 1, "id": "b", "function": {"name": "p", "arguments": '{"input":"x"}'}}
            ]
        }
    },
)
BODY = compact(
    {
        "model": "m",
        "input": "Hello",
        "include": ["web_search_call.action.sources", "reasoning.encrypted_content"],
        "tools": [
            {"type": "function", "name": "f", "parameters": {}, "strict": None},
            {"type": "custom", "name": "p"},
            {"type": "web_search"},
        ],
    }
).encode()

#: What no answer of ours has, although the schema knows it.
NEVER_TOLD = {"response.reasoning_text.delta", "response.reasoning_text.done", "error"}
#: What only an answer of several turns has.
OF_TURNS = {
    name
    for name in EVENTS
    if any(tool in name for tool in ("image_generation", "mcp_", "code_interpreter"))
}


def everything(finish: str | None) -> bytes:
    """A stream with every kind of content that a response can tell."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [{"index": 0, "finish_reason": None, **each} for each in DELTAS]
    if finish is not None:
        choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return b"".join(sse.render({**head, "choices": [choice]}) for choice in choices)


def told_events(events: bytes, *, failing: bool = False) -> list[dict[str, Any]]:
    encoder = ResponseEncoder(parse_request(JsonObject(BODY)), id="resp_1", created=1, model="m")
    out = encoder.feed(events)
    out += encoder.fail(UpstreamError("It broke.", code="upstream_broken")) if failing else b""
    return [sse.parse(event) for event in sse.events(out + encoder.end())]


@pytest.mark.parametrize("stream", CORPUS, ids=lambda path: path.stem)
def test_a_response_to_what_was_seen_obeys(stream: Path) -> None:
    told = told_events(normalized(stream.read_bytes()))

    assert told
    for event in told:
        check_event(event)


def test_every_event_that_a_response_can_have_obeys() -> None:
    kinds = set()
    for finish in ("stop", "length", None):
        for event in told_events(everything(finish), failing=finish is None):
            check_event(event)
            kinds.add(event["type"])

    assert kinds == set(EVENTS) - NEVER_TOLD - OF_TURNS
