"""Which hosts and models get adapted requests."""

from __future__ import annotations

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.adapt import Target
from tests.upstream.adapt.support import (
    HELLO,
    MODEL,
    NAMED,
    STRICT,
    SYSTEM,
    TOOL,
    USER,
    WEB_SEARCH,
    Json,
    adapted,
    difference,
    sent,
    target_of,
)

#: Something for every rule.
EVERYTHING: Json = {
    "temperature": 2,
    "top_p": 0,
    "presence_penalty": 3,
    "frequency_penalty": 1,
    "user": "me",
    "n": 3,
    "seed": -1,
    "max_completion_tokens": 10**9,
    "max_tokens": 10**9,
    "reasoning_effort": "low",
    "thinking_budget": 100,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
    "tools": [TOOL, WEB_SEARCH],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
}
SCATTERED: list[Json] = [USER, {"role": "developer", "content": "Be kind."}, SYSTEM]
MERGED: list[Json] = [{"role": "system", "content": "Be kind.\n\nBe brief."}, USER]

LEFT_ALONE = [
    Target(Family.OTHER, "llama-4"),
    Target(Family.OTHER, "deepseek-v4-pro"),
    Target(Family.OTHER, "gpt-5"),
]


@pytest.mark.parametrize("target", LEFT_ALONE, ids=lambda target: target.model)
def test_a_server_that_is_no_qwen_host_gets_what_the_client_sent(target: Target) -> None:
    members = {**EVERYTHING, "messages": SCATTERED}

    made = adapted(members, target)

    assert (dict(made.changes), made.drop, made.changed, made.fan_out) == ({}, frozenset(), (), 1)


@pytest.mark.parametrize(
    "target",
    [
        Target(Family.OTHER, "Qwen/Qwen3.6-27B"),
        Target(Family.OTHER, "qwen3:8b"),
        Target(Family.OTHER, MODEL),
    ],
    ids=lambda target: target.model,
)
def test_but_a_qwen_model_gets_its_system_message_first_wherever_it_runs(target: Target) -> None:
    members = {**EVERYTHING, "messages": SCATTERED}

    made = adapted(members, target, STRICT)

    assert difference(members, made) == {"messages": MERGED}
    assert made.changed == ("messages:developer-as-system", "messages:system-merged")


@pytest.mark.parametrize("family", [family for family in Family if family.is_qwen], ids=str)
def test_every_qwen_host_gets_adapted_requests(family: Family) -> None:
    members: Json = {"temperature": 2, "user": "me", "messages": SCATTERED}

    made = adapted(members, target_of(family=family))

    after = sent(members, made)
    assert after["temperature"] == 1.99
    assert "user" not in after
    assert [message["role"] for message in after["messages"]] == ["system", "user"]


def test_the_sandbox_is_spoken_to_like_model_studio() -> None:
    at_sandbox = adapted(EVERYTHING, target_of(family=Family.SANDBOX))

    assert at_sandbox == adapted(EVERYTHING, target_of(family=Family.DASHSCOPE))


@pytest.mark.parametrize("family", [each for each in Family if each is not Family.PORTAL], ids=str)
@pytest.mark.parametrize("model", [MODEL, "qwen3.8-max", "deepseek-v4-pro", "some-new-model"])
def test_an_ordinary_request_stays_as_it_is(family: Family, model: str) -> None:
    members: Json = {
        "model": model,
        "messages": [*HELLO, {"role": "assistant", "content": "Hi"}, USER],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 1,
        "max_tokens": 500,
        "stop": ["\n"],
        "seed": 7,
        "n": 1,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.1,
        "top_k": 40,
        "enable_search": False,
        "vl_high_resolution_images": True,
        "something_new": {"a": [1, 2]},
    }

    made = adapted(members, target_of(model, family))

    assert made.changed == ()
    assert not made.changes
    assert not made.drop


def test_of_a_model_that_is_not_known_no_limits_are_assumed() -> None:
    """The rules for all models of the hosts still apply."""
    members: Json = {
        "max_tokens": 10**9,
        "max_completion_tokens": 10**9,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
        "tools": [TOOL],
        "tool_choice": NAMED,
        "temperature": 2,
    }

    made = adapted(members, target_of("qwen4-max"))

    assert difference(members, made) == {"temperature": 1.99, "parallel_tool_calls": True}


def test_a_strict_refusal_says_what_is_not_taken_by_whom_and_why_it_matters() -> None:
    with pytest.raises(BadRequest) as caught:
        adapted({"logit_bias": {"5": 1}}, options=STRICT)

    error = caught.value
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.param, error.code) == ("logit_bias", "unsupported_parameter")
    for word in ("logit_bias", MODEL, "dashscope", "QWEN_PROXY_STRICT=1"):
        assert word in error.message


def test_a_strict_operator_still_gets_what_loses_nothing() -> None:
    members: Json = {
        "messages": SCATTERED,
        "tools": [TOOL],
        "functions": None,
        "n": 2,
        "reasoning_effort": "low",
        "frequency_penalty": 0,
        "store": False,
        "user": None,
    }

    made = adapted(members, options=STRICT)

    assert difference(members, made) == {
        "messages": MERGED,
        "parallel_tool_calls": True,
        "functions": ...,
        "n": ...,
        "reasoning_effort": ...,
        "enable_thinking": True,
        "thinking_budget": 4096,
        "frequency_penalty": ...,
        "store": ...,
        "user": ...,
    }
    assert made.fan_out == 2
