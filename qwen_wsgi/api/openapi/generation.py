"""What models write: chat, responses, messages, completions; and embeddings and rankings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qwen_wsgi.api.openapi.headers import OF_ANTHROPIC, OF_COUNTS
from qwen_wsgi.api.openapi.json_schema import (
    Schema,
    answer,
    anything,
    array,
    either,
    flag,
    integer,
    mapping,
    number,
    ref,
    request,
    text,
)
from qwen_wsgi.api.openapi.operations import EVENTS, JSON, Answer, Operation, Query, events, paged
from qwen_wsgi.protocol import completions, rerank
from qwen_wsgi.protocol.embeddings.request import MAX_ROWS
from qwen_wsgi.protocol.translation import thinking

_MODEL: Final = text(
    "The model, by its name or an alias; `GET /v1/models` lists them. Without one, the model of "
    "the first account."
)
_STREAM: Final = flag("Answer with a stream of server-sent events.")
_METADATA: Final = {
    "type": "object",
    "description": "At most 16 pairs of texts, which the answer repeats.",
    "additionalProperties": {"type": "string"},
}

#: Members that Qwen's models know and OpenAI's API does not have, in every dialect.
_OWN: Final[Mapping[str, Schema]] = {
    "enable_thinking": flag("Whether the model thinks before it answers."),
    "thinking_budget": integer("The most tokens of thinking.", minimum=0),
    "preserve_thinking": flag("The model sees its thinking of earlier turns."),
    "enable_search": flag("The host may search the web."),
    "search_options": mapping("How it searches (Model Studio)."),
    "top_k": number("Choose among so many tokens."),
    "min_p": number("Leave out tokens that are less likely than this share of the likeliest."),
    "repetition_penalty": number("Above 1: repeat less."),
    "vl_high_resolution_images": flag("Look at pictures in more detail."),
    **{
        name: anything("Thinking, as other servers have it; understood here, too.")
        for name in sorted(
            thinking.ALL.union(thinking.HOLDERS)
            - {thinking.EFFORT, thinking.NESTED, thinking.SWITCH, thinking.BUDGET}
        )
    },
}

#: The members of a chat request. All others are passed on as they are.
CHAT: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "messages": array(
        {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
        "The conversation: `{role, content}`, with the tools' results; pictures, sound, videos "
        "and files as parts of the content.",
        minItems=1,
    ),
    "audio": mapping("Voice and format of a spoken answer."),
    "frequency_penalty": number("Above 0: repeat less."),
    "function_call": anything("The older form of `tool_choice`."),
    "functions": array(mapping(), "The older form of `tools`."),
    "logit_bias": mapping("Make tokens more or less likely."),
    "logprobs": flag("Tell how likely the tokens of the answer were."),
    "max_completion_tokens": integer("The most tokens of an answer, its thinking counted."),
    "max_tokens": integer("The older name of `max_completion_tokens`."),
    "metadata": _METADATA,
    "modalities": array(text(), "What the answer is: `text`, `audio`."),
    "moderation": anything("OpenAI's; no host has it."),
    "n": integer("How many answers.", minimum=1),
    "parallel_tool_calls": flag("The model may call several tools at once."),
    "prediction": mapping("A guess at the answer; hosts of Qwen read none."),
    "presence_penalty": number("Above 0: speak of new things."),
    "prompt_cache_key": text("Names the conversation, which stays on one account."),
    "prompt_cache_options": mapping("OpenAI's; no host has it."),
    "prompt_cache_retention": text("OpenAI's; no host has it."),
    "reasoning_effort": text("How much the model thinks: `none`, `low`, `medium`, `high`, …"),
    "response_format": mapping("JSON, or JSON by a schema."),
    "safety_identifier": text("Names the end user."),
    "seed": integer("The same seed makes the same answer more likely."),
    "service_tier": text("`flex`: the answer may take longer, and costs less where there is such."),
    "stop": anything("A text, or several, before which the answer ends."),
    "store": flag("OpenAI's; chat completions are not stored."),
    "stream": _STREAM,
    "stream_options": mapping(
        "Only with `stream`. `include_usage`: the last event has the tokens."
    ),
    "temperature": number("How much chance there is in the answer."),
    "tool_choice": anything("Which tool must or may be called."),
    "tools": array(mapping(), "What the model may call."),
    "top_logprobs": integer("How many alternatives to tell for each token."),
    "top_p": number("Choose among the likeliest tokens of this share."),
    "user": text("Names the end user."),
    "verbosity": text("How long the answer is to be: `low`, `medium`, `high`."),
    "web_search_options": mapping("Has the host search the web."),
    "reasoning": mapping("OpenRouter's: `effort`, `max_tokens`, `enabled`."),
    **_OWN,
}

#: The members of a request for a response. Others are listed as dropped, or refused in strict mode.
RESPONSES: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "input": either(text(), array(mapping()), meaning="A text, or items of a conversation."),
    "instructions": text("What the model is told before the conversation."),
    "background": flag("Answer at once with a queued response, and make it later."),
    "background_options": mapping("The window in which it must be ready."),
    "context_management": anything("Not supported: the client shortens its history."),
    "conversation": anything("Not supported: use `previous_response_id`."),
    "include": array(text(), "Parts of the answer that are left out otherwise."),
    "max_output_tokens": integer("The most tokens of the answer.", minimum=1),
    "max_tool_calls": integer("The most runs of built-in tools.", minimum=1),
    "metadata": {**_METADATA, "maxProperties": 16},
    "parallel_tool_calls": flag("The model may call several tools at once."),
    "previous_response_id": text("The stored response whose conversation is continued."),
    "prompt": anything("Not supported: stored prompts are OpenAI's."),
    "prompt_cache_key": text("Names the conversation, which stays on one account."),
    "prompt_cache_retention": text("OpenAI's; no host has it."),
    "reasoning": mapping("`effort`, `summary`."),
    "safety_identifier": text("Names the end user."),
    "service_tier": text("`flex`: the answer may take longer, and costs less where there is such."),
    "store": flag("Keep the response, so that it can be continued (the default)."),
    "stream": _STREAM,
    "stream_options": mapping("OpenAI's; nothing of it is needed."),
    "temperature": number("How much chance there is in the answer."),
    "text": mapping("`format`: JSON by a schema; `verbosity`."),
    "tool_choice": anything("Which tool must or may be called."),
    "tools": array(mapping(), "Functions, custom tools, `web_search`, `image_generation`, `mcp`."),
    "top_logprobs": integer("Alternatives for each token.", minimum=0, maximum=20),
    "top_p": number("Choose among the likeliest tokens of this share."),
    "truncation": text("`auto` or `disabled`; nothing is cut here."),
    "user": text("Names the end user."),
    "client_metadata": anything("Data of Codex; not passed on."),
    "prediction": anything("A guess at the answer; hosts of Qwen read none."),
    "prompt_cache_options": anything("OpenAI's; no host has it."),
    **{
        name: CHAT[name]
        for name in ("frequency_penalty", "logit_bias", "presence_penalty", "seed", "stop")
    },
    "reasoning_effort": CHAT["reasoning_effort"],
    **_OWN,
}

#: The members of a request for a message.
MESSAGES: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "messages": array(mapping(), "The conversation, as Anthropic has it."),
    "max_tokens": integer("The most tokens of the answer."),
    "metadata": mapping("`user_id`; keeps the conversation on one account."),
    "output_config": mapping("`effort`, `format`."),
    "output_format": mapping("The older place of `output_config.format`."),
    "stop_sequences": array(text(), "Texts before which the answer ends."),
    "stream": _STREAM,
    "system": either(text(), array(mapping()), meaning="What the model is told first."),
    "temperature": number("How much chance there is in the answer."),
    "mcp_servers": array(
        mapping(), "Servers of tools: this server's by `name`, the client's own with their `url`."
    ),
    "container": anything("The container in which `code_execution` goes on, by its id."),
    "thinking": mapping("Whether the model thinks, and its budget."),
    "tool_choice": mapping("Which tool must or may be called."),
    "tools": array(mapping(), "What the model may call, and Anthropic's web search."),
    "top_k": number("Choose among so many tokens."),
    "top_p": number("Choose among the likeliest tokens of this share."),
}

#: The members of a request of the API before chat; those of chat besides.
COMPLETIONS: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "prompt": either(
        text(),
        array(text(), maxItems=completions.MAX_PROMPTS),
        meaning="A text, or several, each of which is completed.",
    ),
    "suffix": text("The text behind a gap, for models that fill gaps."),
    "best_of": integer("Not supported, but for 1."),
    "echo": flag("Not supported."),
    **{
        name: CHAT[name]
        for name in (
            *("frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"),
            *("presence_penalty", "seed", "stop", "stream", "stream_options"),
            *("temperature", "top_p", "user"),
        )
    },
}

EMBEDDINGS: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "input": either(
        text(),
        array(anything(), maxItems=MAX_ROWS),
        meaning="A text, or several; of models for pictures also objects with `text`, `image`, "
        "`video`. No token ids.",
    ),
    "dimensions": integer("How many numbers a vector has."),
    "encoding_format": text("", "float", "base64"),
    "user": text("Names the end user."),
    "instruct": text("What the vectors are for, in words."),
    "fps": number("Of videos: frames per second that are looked at."),
    "res_level": integer("Of pictures: how closely they are looked at."),
    "max_video_frames": integer("Of videos: the most frames that are looked at."),
    "enable_fusion": flag("One vector for all parts of a row."),
}

_RANKED: Final = either(
    text(), mapping(), meaning="A text; or an object with a picture or a video."
)
RERANK: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "query": _RANKED,
    "documents": array(_RANKED, "What is ranked.", minItems=1, maxItems=rerank.MAX_DOCUMENTS),
    "top_n": integer("How many results there are.", minimum=1),
    "return_documents": flag("Results have their documents."),
    "instruct": text("What the ranking is for, in words."),
    "instruction": text("The same, by its other name."),
    "fps": number("Of videos: frames per second that are looked at."),
    "user": text("Names the end user."),
    "priority": integer("Cohere's; not passed on."),
}

#: Schemas of answers that the files do not have.
SCHEMAS: Final[Mapping[str, Schema]] = {
    "message": answer(
        {
            "id": text(),
            "type": text("", "message"),
            "role": text("", "assistant"),
            "model": text(),
            "content": array({"type": "object", "required": ["type"]}),
            "stop_reason": {"type": ["string", "null"]},
            "stop_sequence": {"type": ["string", "null"]},
            "usage": {
                "type": "object",
                "required": ["input_tokens", "output_tokens"],
                "properties": {"input_tokens": integer(), "output_tokens": integer()},
            },
        }
    ),
    "message_event": answer({"type": text("`message_start`, `content_block_delta`, …")}),
    "message_tokens": answer({"input_tokens": integer("Tokens of the prompt.")}),
    "cache_touch": answer({"type": text("", "cache_touch"), "touched": flag()}),
    "compaction": answer(
        {
            "id": text(),
            "object": text("", "response.compaction"),
            "created_at": integer(),
            "output": array(mapping(), "The shortened conversation: the next request's input."),
            "usage": {"type": ["object", "null"]},
        }
    ),
    "ranking": answer(
        {
            "id": text(),
            "object": text("", "list"),
            "model": text(),
            "results": array(
                answer(
                    {
                        "index": integer("Of the document in the request.", minimum=0),
                        "relevance_score": number(),
                        "document": mapping(),
                    },
                    optional=("document",),
                ),
                "The best first.",
            ),
            "usage": answer({"prompt_tokens": integer(), "total_tokens": integer()}),
            "meta": mapping(),
        }
    ),
}

_CHAT_TAG: Final = "Chat"
_RESPONSES_TAG: Final = "Responses"
_MESSAGES_TAG: Final = "Messages"
_OTHER_TAG: Final = "Embeddings and rankings"

#: What examples ask for.
_CHAT_MODEL: Final = "qwen3.7-plus"
_HELLO: Final = [{"role": "user", "content": "Say hello."}]
_SPOKEN: Final = {"model": _CHAT_MODEL, "input": "Say hello."}

_RESPONSE: Final = Answer("The response.", {JSON: ref("responses.response")})

_RESPONSE_BODY: Final = {JSON: request(RESPONSES, description="The members that have a meaning.")}
_MESSAGE_BODY: Final = {JSON: request(MESSAGES, required=("messages",))}

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/chat/completions",
        _CHAT_TAG,
        "Answer a conversation",
        (
            Answer(
                "The answer, or with `stream` its pieces as they come.",
                {
                    JSON: ref("chat.completion"),
                    EVENTS: events(
                        "Chunks, and `data: [DONE]` at the end. A stream that fails ends with an "
                        "error and a closed connection.",
                        "chat.chunk",
                        "error.envelope",
                    ),
                },
            ),
        ),
        description="Members that the table does not have are passed on as they are. The form of "
        "Responses (`input` in place of `messages`) is understood, too. An explicit upstream of "
        "the operator answers as it does, which is passed on.",
        example={"model": _CHAT_MODEL, "messages": _HELLO},
        body={JSON: request(CHAT)},
        errors=(424,),
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/completions",
        _CHAT_TAG,
        "Complete a text",
        (
            Answer(
                "The text, or with `stream` its pieces as they come.",
                {
                    JSON: ref("completions.completion"),
                    EVENTS: events(
                        "Chunks, and `data: [DONE]` at the end.",
                        "completions.chunk",
                        "error.envelope",
                    ),
                },
            ),
        ),
        example={"model": _CHAT_MODEL, "prompt": "Once upon a time"},
        body={JSON: request(COMPLETIONS, required=("prompt",))},
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/responses",
        _RESPONSES_TAG,
        "Make a response",
        (
            Answer(
                "The response, or with `stream` its events as they come.",
                {
                    JSON: ref("responses.response"),
                    EVENTS: events("Events, each with its `type`.", "responses.event"),
                },
            ),
        ),
        example=_SPOKEN,
        body=_RESPONSE_BODY,
        errors=(424,),
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/responses",
        _RESPONSES_TAG,
        "Open a WebSocket for responses",
        (Answer("The WebSocket is open.", status=101),),
        description="Each `response.create` that the client sends makes a response, whose events "
        "come as messages. Without `Upgrade: websocket` the answer is 405.",
        errors=(400, 405, 426),
    ),
    Operation(
        "POST",
        "/v1/responses/input_tokens",
        _RESPONSES_TAG,
        "Count the tokens of a request",
        (
            Answer(
                "How many tokens the prompt has.", {JSON: ref("responses.input_tokens")}, OF_COUNTS
            ),
        ),
        example=_SPOKEN,
        body=_RESPONSE_BODY,
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/responses/compact",
        _RESPONSES_TAG,
        "Shorten a conversation",
        (Answer("The shortened conversation.", {JSON: ref("compaction")}),),
        description="The user's messages, and a summary by the model. Nothing is stored.",
        example=_SPOKEN,
        body=_RESPONSE_BODY,
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/responses/{id}",
        _RESPONSES_TAG,
        "A stored response",
        (_RESPONSE,),
        query=(Query("stream", text("`true` is refused: ask again until the response is ready.")),),
        errors=(400, 404),
    ),
    Operation(
        "DELETE",
        "/v1/responses/{id}",
        _RESPONSES_TAG,
        "Forget a stored response",
        (Answer("It is gone.", {JSON: ref("responses.deleted")}),),
        errors=(404,),
    ),
    Operation(
        "POST",
        "/v1/responses/{id}/cancel",
        _RESPONSES_TAG,
        "End a response in the background",
        (_RESPONSE,),
        errors=(400, 404),
    ),
    Operation(
        "GET",
        "/v1/responses/{id}/input_items",
        _RESPONSES_TAG,
        "What a stored response was asked with",
        (Answer("The items.", {JSON: ref("responses.input_items")}),),
        query=(
            *paged(),
            Query("include", array(text(), "OpenAI's; everything is told.")),
        ),
        errors=(400, 404),
    ),
    Operation(
        "POST",
        "/v1/messages",
        _MESSAGES_TAG,
        "Answer a conversation, in Anthropic's form",
        (
            Answer(
                "The message, or with `stream` its events as they come.",
                {
                    JSON: ref("message"),
                    EVENTS: events("Events, each with its `type`.", "message_event"),
                },
                OF_ANTHROPIC,
            ),
        ),
        example={"model": _CHAT_MODEL, "max_tokens": 256, "messages": _HELLO},
        body=_MESSAGE_BODY,
        errors=(424,),
        asks_upstream=True,
        anthropic=True,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        _MESSAGES_TAG,
        "Count the tokens of a prompt",
        (
            Answer(
                "How many tokens the prompt has.",
                {JSON: ref("message_tokens")},
                {**OF_ANTHROPIC, **OF_COUNTS},
            ),
        ),
        example={"model": _CHAT_MODEL, "messages": _HELLO},
        body=_MESSAGE_BODY,
        asks_upstream=True,
        anthropic=True,
    ),
    Operation(
        "POST",
        "/v1/messages/cache_touch",
        _MESSAGES_TAG,
        "Say that no cache is kept alive",
        (Answer("So that Claude Code does not try again.", {JSON: ref("cache_touch")}),),
        example={},
        body={JSON: mapping()},
        anthropic=True,
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        _OTHER_TAG,
        "Embed texts, pictures and videos",
        (
            Answer(
                "A vector for each row.",
                {JSON: either(ref("embeddings.response"), ref("embeddings.base64_response"))},
            ),
        ),
        example={"model": "text-embedding-v4", "input": ["one", "two"]},
        body={JSON: request(EMBEDDINGS, required=("input",))},
        asks_upstream=True,
    ),
    *(
        Operation(
            "POST",
            path,
            _OTHER_TAG,
            f"Rank documents, in the form of {whose}",
            (Answer("The best documents.", {JSON: ref("ranking")}),),
            example={"model": "qwen3-rerank", "query": "fruit", "documents": ["apple", "car"]},
            body={JSON: request(RERANK, required=("query", "documents"))},
            asks_upstream=True,
        )
        for path, whose in (
            ("/v1/rerank", "Cohere and Jina"),
            ("/v1/reranks", "Model Studio"),
            ("/v2/rerank", "Cohere's second version"),
        )
    ),
)
