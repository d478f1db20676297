"""Function tools over a web token: refused in each dialect, unless none is to be called."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.web.behind import Caller, routes, web_app

_SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
_SAID = [{"role": "user", "content": "hi"}]
#: A request of each dialect that has tools, and how it says that none is to be called.
_DIALECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/chat/completions": (
        {
            "messages": _SAID,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}],
        },
        "none",
    ),
    "/v1/responses": (
        {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": _SCHEMA}]},
        "none",
    ),
    "/v1/messages": (
        {
            "max_tokens": 9,
            "messages": _SAID,
            "tools": [{"name": "f", "input_schema": _SCHEMA}],
        },
        {"type": "none"},
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", sorted(_DIALECTS))
def test_they_are_refused_with_what_to_do(path: str, stream: bool) -> None:
    with web_app() as (app, site):
        body = {"model": "qwen3-max", "stream": stream, **_DIALECTS[path][0]}
        answer = Caller(app, site, "ann").post(path, body)

        assert answer.status_code == 400
        assert "calls no functions" in answer.text
        assert "an account with an API key" in answer.text
        assert "POST web-chats" not in routes(site)


@pytest.mark.parametrize("path", sorted(_DIALECTS))
def test_they_may_be_there_if_none_is_to_be_called(path: str) -> None:
    with web_app() as (app, site):
        body, none = _DIALECTS[path]
        body = {"model": "qwen3-max", "tool_choice": none, **body}
        answer = Caller(app, site, "ann").post(path, body)

        assert answer.status_code == 200, answer.text


def test_so_are_functions_of_the_older_form() -> None:
    with web_app() as (app, site):
        caller = Caller(app, site, "ann")

        assert caller.chat(functions=[{"name": "f"}]).status_code == 400
        assert caller.chat(functions=[{"name": "f"}], function_call="none").status_code == 200
