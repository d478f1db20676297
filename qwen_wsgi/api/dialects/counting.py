"""Counts the tokens of prompts: what an upstream counted of a conversation, and an estimate of what
was added since; or what the tokenizer of a host says, if the operator wants it to be asked.

Qwen's hosts count only what they answer. So each answer to a client that counts tokens is
remembered by its conversation, and the next count begins there.
"""

from __future__ import annotations

from typing import Final

from flask import Response

from qwen_wsgi.api import http
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.protocol import tokens
from qwen_wsgi.protocol.json_access import Members

#: How a number was found: `exact`, `calibrated` or `estimated`.
HEADER: Final = "x-qwen-proxy-tokens"

EXACT: Final = "exact"
CALIBRATED: Final = "calibrated"
ESTIMATED: Final = "estimated"


def watch(call: LiveCall, chat: Members, model: str) -> None:
    """Have the prompt's exact tokens remembered when the call ends, if its client counts tokens."""
    if call.services.token_counts.wanted(call.owner):
        keys = tokens.beginnings(chat, call.owner, model)
        call.count_as = keys[-1] if keys else None
        if call.budget is not None and (known := call.services.token_counts.longest(keys)):
            added = tokens.estimate_added(chat, known.messages)
            call.prompt_tokens = known.tokens + added


def count(call: LiveCall, chat: Members, model: str) -> tuple[int, str]:
    """The tokens of a prompt, and how they were found."""
    call.record.budget = None  # a host that is asked generates nothing
    counts = call.services.token_counts
    counts.want(call.owner)
    keys = tokens.beginnings(chat, call.owner, model)
    known = counts.longest(keys)
    if known is not None and known.messages == len(keys):
        return known.tokens, EXACT
    if call.services.tokenizer.enabled:
        prompt = tokens.countable(chat)
        # With tools, what an upstream counted of the conversation is nearer to the truth.
        asks = prompt.messages and not (known and prompt.rest)
        if asks and (counted := _by_host(call, prompt, model)) is not None:
            if prompt.rest:
                return counted + prompt.rest, CALIBRATED
            counts.remember(keys[-1], counted)
            return counted, EXACT
    if known is None:
        return tokens.estimate(chat), ESTIMATED
    return known.tokens + tokens.estimate_added(chat, known.messages), CALIBRATED


def _by_host(call: LiveCall, prompt: tokens.Countable, model: str) -> int | None:
    """What a host's tokenizer says of the texts of a prompt; None if it says nothing."""
    return call.services.tokenizer.count(
        model,
        prompt.messages,
        headers=generation.forwarded_headers(call.environ),
        record=call.record,
        permit=generation.permit_of(call),
    )


def answer(body: dict[str, object], how: str) -> Response:
    """The response with a number, and how it was found."""
    response = http.json_value(body)
    response.headers[HEADER] = how
    return response
