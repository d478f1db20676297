"""Unsupported parameters, ranges, lengths and the number of choices."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from tests.upstream.adapt.support import LAX, STRICT, TOOL, Json, adapted, difference, target_of

OUT_OF_RANGE = [
    ("temperature", 2, 1.99),
    ("temperature", 2.0, 1.99),
    ("temperature", 5, 1.99),
    ("top_p", 0, 0.01),
    ("top_p", 0.0, 0.01),
    ("top_p", 1.5, 1),
    ("presence_penalty", 2.5, 2),
    ("presence_penalty", -3, -2),
    ("top_logprobs", 20, 5),
    ("seed", -1, 2**31 - 1),
    ("seed", 2**31, 0),
    ("seed", 2**40 + 5, 5),
]


@pytest.mark.parametrize(("name", "value", "fitting"), OUT_OF_RANGE)
@pytest.mark.parametrize("model", ["qwen-plus", "glm-5.1", "some-new-model"])
def test_what_openai_takes_and_the_host_does_not_is_moved_to_the_edge(
    name: str, value: float, fitting: float, model: str
) -> None:
    made = adapted({name: value}, target_of(model))

    assert difference({name: value}, made) == {name: fitting}
    assert made.changed == (f"{name}:clamped",)
    with pytest.raises(BadRequest) as caught:
        adapted({name: value}, target_of(model), STRICT)
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 1.999),
        ("temperature", -1),  # OpenAI refuses that as well: the host may
        ("temperature", None),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 1),
        ("top_p", 0.001),
        ("top_p", -1),
        ("presence_penalty", -2),
        ("presence_penalty", 2),
        ("top_logprobs", 5),
        ("logprobs", True),
        ("seed", 0),
        ("seed", 2**31 - 1),
        ("seed", 1.5),
        ("seed", "1"),
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("n", 0),
        ("n", 5),  # more than the host's four: it says so
        ("n", True),
        ("n", 2.0),
        ("n", None),
    ],
)
def test_what_is_in_range_or_nonsense_is_left_to_the_host(name: str, value: Any) -> None:
    assert adapted({name: value}, options=STRICT).changed == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0.5),
        ("logit_bias", {"1": 2}),
        ("service_tier", "flex"),
        ("verbosity", "low"),
        ("moderation", {"model": "x"}),
        ("background", True),
        ("webhook_config", {}),
    ],
)
def test_a_field_that_no_qwen_host_takes_is_dropped(name: str, value: Any) -> None:
    made = adapted({name: value})

    assert difference({name: value}, made) == {name: ...}
    assert made.changed == (f"{name}:dropped",)
    with pytest.raises(BadRequest):
        adapted({name: value}, options=STRICT)


@pytest.mark.parametrize(
    "name",
    ["previous_response_id", "conversation", "container", "suffix", "thread"],
)
def test_what_changes_the_meaning_of_an_answer_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        adapted({name: "x"})

    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
    assert adapted({name: None}).drop == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "me"),
        ("user", ""),
        ("store", True),
        ("store", False),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
        ("prompt_cache_retention", "24h"),
        ("prediction", {"type": "content", "content": "def f():"}),
        ("service_tier", "auto"),
        ("service_tier", "default"),
    ],
)
def test_a_hint_on_which_no_answer_depends_is_dropped_and_never_refused(
    name: str, value: Any
) -> None:
    for options in (LAX, STRICT):
        made = adapted({name: value}, options=options)

        assert difference({name: value}, made) == {name: ...}
        assert made.changed == (f"{name}:dropped",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0),
        ("frequency_penalty", 0.0),
        ("logit_bias", {}),
        ("verbosity", "medium"),
        ("user", None),
        ("prediction", None),
    ],
)
def test_to_drop_what_asks_for_nothing_is_no_loss(name: str, value: Any) -> None:
    made = adapted({name: value}, options=STRICT)

    assert difference({name: value}, made) == {name: ...}


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("qwen3.7-plus", True),
        ("Qwen3-Max", True),
        ("coder-model", True),
        ("qwen-not-known", True),
        ("deepseek-v4-pro", False),
        ("glm-5.1", False),
        ("kimi-k3", False),
        ("MiniMax-M2.5", False),
        ("not-known", False),
    ],
)
def test_metadata_goes_to_qwen_models_only(model: str, takes: bool) -> None:
    members: Json = {"metadata": {"sessionId": "1"}}

    made = adapted(members, target_of(model))

    assert difference(members, made) == ({} if takes else {"metadata": ...})
    assert adapted(members, target_of("glm-5"), STRICT).drop == {"metadata"}


@pytest.mark.parametrize(
    ("model", "name", "most"),
    [
        ("qwen3.8-max", "max_tokens", 131_072),
        ("qwen3.8-max", "max_completion_tokens", 131_072),
        ("qwen3.7-plus", "max_tokens", 65_536),
        ("qwen-plus", "max_tokens", 32_768),
        ("qwen-max", "max_tokens", 8_192),
        ("coder-model", "max_tokens", 65_536),
        ("glm-4.7", "max_tokens", 16_384),
        ("deepseek-v4-pro", "max_completion_tokens", 393_216),
    ],
)
def test_more_tokens_than_a_model_has_are_as_many_as_it_has(
    model: str, name: str, most: int
) -> None:
    assert adapted({name: most}, target_of(model)).changed == ()
    made = adapted({name: most + 1}, target_of(model))
    assert difference({name: most + 1}, made) == {name: most}
    assert made.changed == (f"{name}:clamped",)
    with pytest.raises(BadRequest):
        adapted({name: most + 1}, target_of(model), STRICT)


@pytest.mark.parametrize(
    "model", ["deepseek-v3.2", "qwen3.7-plus-2026-05-26", "siliconflow/deepseek-v3.2", "unknown"]
)
def test_where_no_limit_is_known_none_is_set(model: str) -> None:
    assert adapted({"max_tokens": 10**9}, target_of(model)).changed == ()


NEW = ["qwen3.8-max", "qwen3.7-max", "qwen3.5-plus", "qwen3.6-flash", "kimi-k2.5", "glm-5"]
NEW += ["MiniMax-M2.5", "deepseek-v4-pro", "deepseek-v3.2", "never-heard-of", "kimi/kimi-k3"]
OLD = ["qwen-plus", "qwen3-max", "qwen3-coder-plus", "qwen3.6-max-preview", "glm-4.7"]
OLD += ["qwen3-vl-plus", "coder-model", "qwen-max"]


@pytest.mark.parametrize("model", NEW)
def test_newer_models_take_the_limit_of_the_whole_answer(model: str) -> None:
    assert adapted({"max_completion_tokens": 100}, target_of(model), STRICT).changed == ()


@pytest.mark.parametrize("model", OLD)
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"max_completion_tokens": 100}, {"max_tokens": 100}),
        ({"max_completion_tokens": 100, "max_tokens": 50}, {}),
        ({"max_completion_tokens": 100, "max_tokens": 500}, {"max_tokens": 100}),
        ({"max_completion_tokens": 100, "max_tokens": None}, {"max_tokens": 100}),
    ],
)
def test_older_models_know_max_tokens_only(model: str, members: Json, expected: Json) -> None:
    made = adapted(members, target_of(model))

    assert difference(members, made) == {**expected, "max_completion_tokens": ...}
    assert "max_completion_tokens:as-max_tokens" in made.changed


def test_a_limit_that_is_too_high_is_refused_by_the_name_that_the_client_used() -> None:
    members: Json = {"max_completion_tokens": 10**6}

    assert adapted(members, target_of("qwen-plus")).changes == {"max_tokens": 32_768}
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of("qwen-plus"), STRICT)
    assert caught.value.param == "max_completion_tokens"


def test_a_limit_that_no_longer_counts_the_thinking_is_a_loss_only_where_there_is_some() -> None:
    adapted({"max_completion_tokens": 9}, target_of("qwen-plus"), STRICT)
    with pytest.raises(BadRequest) as caught:
        adapted(
            {"max_completion_tokens": 9, "enable_thinking": True}, target_of("qwen-plus"), STRICT
        )
    assert caught.value.param == "max_completion_tokens"


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("model", ["qwen3.7-plus", "qwen3.8-max", "glm-5.1", "unknown"])
def test_several_choices_come_of_several_calls(count: int, model: str) -> None:
    made = adapted({"n": count}, target_of(model), STRICT)

    assert difference({"n": count}, made) == {"n": ...}
    assert (made.changed, made.fan_out) == (("n:fanned-out",), count)


@pytest.mark.parametrize("model", ["qwen-plus", "qwen3-max", "qwen-plus-character"])
def test_or_of_one_where_the_model_has_them(model: str) -> None:
    assert adapted({"n": 2}, target_of(model)).fan_out == 1
    assert adapted({"n": 2}, target_of(model)).changed == ()


@pytest.mark.parametrize(
    "members", [{"enable_thinking": True}, {"reasoning_effort": "low"}, {"tools": [TOOL]}], ids=str
)
def test_but_not_with_thinking_or_tools(members: Json) -> None:
    made = adapted({"n": 2, **members}, target_of("qwen-plus"))

    assert made.fan_out == 2
    assert "n" in made.drop
