"""Builds requests, and renders what would be sent for them."""

from __future__ import annotations

import json
from typing import Any

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.chat import ChatRequest, parse_request
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.upstream.adapt import Adapted, Options, Target, adapt

Json = dict[str, Any]

SYSTEM: Json = {"role": "system", "content": "Be brief."}
USER: Json = {"role": "user", "content": "Hello"}
HELLO: list[Json] = [SYSTEM, USER]
TOOL: Json = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
OTHER_TOOL: Json = {"type": "function", "function": {"name": "leap"}}
WEB_SEARCH: Json = {"type": "web_search"}
NAMED: Json = {"type": "function", "function": {"name": "look"}}
MARK: Json = {"type": "ephemeral"}

MODEL = "qwen3.7-plus"
LAX = Options()
STRICT = Options(strict=True)
CACHING = Options(cache_control=True)


def request_of(**members: Any) -> ChatRequest:
    return parse_request(JsonObject(json.dumps({"messages": HELLO, **members}).encode()))


def part(text: str, *, marked: bool = False) -> Json:
    return {"type": "text", "text": text, **({"cache_control": MARK} if marked else {})}


def target_of(
    model: str = MODEL,
    family: Family = Family.DASHSCOPE,
    *,
    search: bool = False,
    thinking: bool | None = None,
    refused: frozenset[str] = frozenset(),
) -> Target:
    return Target(family, model, search=search, thinking=thinking, refused=refused)


def adapted(
    members: Json, target: Target | None = None, options: Options = LAX, *, stream: bool = True
) -> Adapted:
    return adapt(request_of(**members), target or target_of(), options, stream=stream)


def sent(members: Json, made: Adapted) -> Json:
    """The body for the upstream."""
    body: Json = json.loads(request_of(**members).body.render(made.changes, drop=made.drop))
    return body


def difference(members: Json, made: Adapted) -> Json:
    """The members that differ in the body for the upstream; dropped ones as `...`."""
    before = {"messages": HELLO, **members}
    after = sent(members, made)
    changed = {name: value for name, value in after.items() if before.get(name, ...) != value}
    return {**changed, **{name: ... for name in before if name not in after}}
