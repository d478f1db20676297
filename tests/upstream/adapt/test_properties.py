"""For any request: no exception, the request is not modified, every change is listed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.chat import ChatRequest, parse_request
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.sandbox import params as sandbox
from qwen_wsgi.upstream import adapt as rules
from qwen_wsgi.upstream.adapt import Adapted, Options, Target
from qwen_wsgi.upstream.routing import model_profiles
from tests.kit.properties import examples
from tests.upstream.adapt.support import LAX, STRICT, Json

EXAMPLES = examples(200)

TEXTS = st.text(max_size=6) | st.sampled_from(["json", "a", "", "\ud800"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
MARKS = st.fixed_dictionaries({}, optional={"cache_control": st.just({"type": "ephemeral"}) | JUNK})
PARTS = st.one_of(
    st.tuples(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), MARKS).map(
        lambda both: {**both[0], **both[1]}
    ),
    st.just({"type": "image_url", "image_url": {"url": "data:,"}}),
    JUNK,
)
CONTENTS = TEXTS | st.none() | st.lists(PARTS, max_size=3) | JUNK
NAMES = st.sampled_from(["look", "leap"])
CALLS = st.fixed_dictionaries({"name": NAMES, "arguments": TEXTS}) | JUNK
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES | TEXTS},
    optional={
        "content": CONTENTS,
        "name": NAMES | JUNK,
        "function_call": CALLS,
        "tool_calls": st.just([{"id": "1"}]) | JUNK,
        "tool_call_id": TEXTS,
        "reasoning_content": TEXTS,
        "annotations": st.lists(JUNK, max_size=1) | JUNK,
    },
)
FUNCTIONS = st.fixed_dictionaries({"name": NAMES}) | JUNK
TOOLS = st.one_of(
    st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTIONS}),
    st.just({"type": "web_search_preview"}),
    st.just({"type": "custom", "custom": {"name": "patch"}}),
    JUNK,
)
EFFORTS = st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"])
NUMBERS = st.integers(-3, 10**6) | st.floats(-3, 3) | st.just(10**30)
#: Members by name: what a client may mean by them. Junk of any kind is added to each.
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        [
            "temperature",
            "top_p",
            "presence_penalty",
            "frequency_penalty",
            "top_logprobs",
            "seed",
            "max_tokens",
            "max_completion_tokens",
            "thinking_budget",
        ],
        NUMBERS,
    ),
    "n": st.integers(0, 6),
    "tools": st.lists(TOOLS, max_size=3),
    "functions": st.lists(FUNCTIONS, max_size=2),
    "function_call": st.sampled_from(["auto", "none"]) | CALLS,
    "tool_choice": st.one_of(
        st.sampled_from(["auto", "none", "required"]),
        st.just({"type": "function", "function": {"name": "look"}}),
    ),
    "parallel_tool_calls": st.booleans(),
    "web_search_options": st.just({}) | st.just({"search_context_size": "low"}),
    "enable_search": st.booleans(),
    "response_format": st.sampled_from(
        [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        ]
    ),
    "reasoning_effort": EFFORTS,
    "reasoning": st.fixed_dictionaries(
        {},
        optional={
            "effort": EFFORTS | JUNK,
            "enabled": st.booleans() | JUNK,
            "max_tokens": NUMBERS | JUNK,
        },
    ),
    "enable_thinking": st.booleans(),
    "extra_body": st.fixed_dictionaries(
        {},
        optional={
            "enable_thinking": st.booleans() | JUNK,
            "google": st.just({"thinking_config": {"thinking_budget": 5}}) | JUNK,
        },
    ),
    "prediction": JUNK,
    "metadata": st.just({"a": "b"}),
    "user": TEXTS,
    "store": st.booleans(),
    "logit_bias": st.just({}),
    "service_tier": TEXTS,
    "stop": TEXTS,
    "something_new": JUNK,
}
MEMBERS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, min_size=1, max_size=5)},
    optional={
        "model": TEXTS,
        "stream": st.booleans() | st.none(),
        **{name: values | JUNK for name, values in PLAUSIBLE.items()},
    },
)
#: One of every kind, and names that are not known.
MODELS = st.sampled_from(
    [
        *{
            str(model_profiles.profile_of(name)): name
            for name in model_profiles.FACTS
            if "embed" not in name
        }.values(),
        "qwen-doc-turbo",
        "qwq-32b",
        "glm-5.3",
        "qwen-new",
        "llama",
        "Qwen/Qwen3-8B",
        "glm-9",
    ]
)
FAMILIES = st.just(Family.DASHSCOPE) | st.just(Family.PORTAL) | st.sampled_from(Family)
TARGETS = st.builds(
    Target,
    family=FAMILIES,
    model=MODELS,
    search=st.booleans(),
    thinking=st.none() | st.booleans(),
)
OPTIONS = st.builds(Options, strict=st.just(False), cache_control=st.booleans())

CASES = {"members": MEMBERS, "target": TARGETS, "options": OPTIONS, "stream": st.booleans()}


def parsed(body: bytes) -> ChatRequest:
    return parse_request(JsonObject(body))


def request_of(members: Json) -> ChatRequest:
    return parsed(json.dumps(members, indent=1).encode())


def again(request: ChatRequest, made: Adapted) -> ChatRequest:
    return parsed(request.body.render(made.changes, drop=made.drop))


def adapt(request: ChatRequest, target: Target, options: Options, *, stream: bool) -> Adapted:
    """Adapt a request, unless it is refused whatever the options: a forced search, for one, or the
    choice of a tool that is not offered."""
    try:
        return rules.adapt(request, target, options, stream=stream)
    except BadRequest as error:
        unknown_tool = error.code == "invalid_value" and error.param == "tool_choice"
        if unknown_tool or error.code == "web_search_unavailable":
            reject()
        raise


@EXAMPLES
@given(**CASES)
def test_no_request_makes_it_fail(
    members: Json, target: Target, options: Options, stream: bool
) -> None:
    made = adapt(request_of(members), target, options, stream=stream)

    assert 1 <= made.fan_out <= 4


@EXAMPLES
@given(members=MEMBERS, target=TARGETS, stream=st.booleans())
def test_strict_options_refuse_and_else_change_the_same(
    members: Json, target: Target, stream: bool
) -> None:
    request = request_of(members)
    lax = adapt(request, target, LAX, stream=stream)
    try:
        strict = adapt(request, target, STRICT, stream=stream)
    except BadRequest as error:
        assert error.code == "unsupported_parameter"
        assert error.param in {*members, "model"}
    else:
        assert strict == lax


@EXAMPLES
@given(**CASES)
def test_what_is_adapted_needs_nothing_more(
    members: Json, target: Target, options: Options, stream: bool
) -> None:
    request = request_of(members)
    made = adapt(request, target, options, stream=stream)

    once_more = adapt(again(request, made), target, options, stream=stream)

    assert (once_more.changed, dict(once_more.changes), once_more.drop) == ((), {}, frozenset())


@EXAMPLES
@given(**CASES)
def test_every_change_is_named_and_every_name_is_a_change(
    members: Json, target: Target, options: Options, stream: bool
) -> None:
    request = request_of(members)
    made = adapt(request, target, options, stream=stream)

    assert bool(made.changed) == bool(made.changes or made.drop)
    assert not made.drop & made.changes.keys()
    assert made.drop <= members.keys()
    named = {entry.partition(":")[0] for entry in made.changed}
    assert made.changes.keys() | made.drop <= named
    for entry in made.changed:
        assert entry.isascii() and entry.isprintable() and not set(entry) & {",", " "}
        assert all(entry.partition(":"))


@EXAMPLES
@given(**CASES)
def test_the_rest_keeps_its_bytes(
    members: Json, target: Target, options: Options, stream: bool
) -> None:
    request = request_of(members)
    made = adapt(request, target, options, stream=stream)

    rendered = request.body.render(made.changes, drop=made.drop)

    for name, value in members.items():
        if name not in made.changes and name not in made.drop:
            text = json.dumps({name: value}, indent=1)[2:-2].strip()
            written = text.replace(": ", ":", 1)  # between a name and its value
            assert written.encode() in rendered or text.encode() in rendered
    if not made.changed:
        assert rendered == json.dumps(members, indent=1).encode()


@EXAMPLES
@given(**CASES)
def test_the_request_itself_is_not_touched(
    members: Json, target: Target, options: Options, stream: bool
) -> None:
    request = request_of(members)
    before = {name: copy.deepcopy(request.body[name]) for name in request.body.names()}

    made = adapt(request, target, options, stream=stream)
    for value in made.changes.values():
        copy.deepcopy(value)  # a changed value is plain JSON, with no loop in it

    assert {name: request.body[name] for name in request.body.names()} == before


@EXAMPLES
@given(**CASES)
def test_messages_are_rendered_anew_only_if_they_change(
    members: Json, target: Target, options: Options, stream: bool
) -> None:
    request = request_of(members)
    made = adapt(request, target, options, stream=stream)

    assert ("messages" in made.changes) == any(
        entry.startswith("messages:") for entry in made.changed
    )
    if "messages" in made.changes:
        assert made.changes["messages"] != request.body["messages"]


# --- what the host says to it -------------------------------------------------------------------

SAID = st.sampled_from(["Hello", "json", [{"type": "text", "text": "Hello"}]])
#: What OpenAI takes, as far as clients make use of it.
ORDINARY = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["system", "developer", "user", "assistant"]),
                    "content": SAID,
                },
                optional={"annotations": st.just([{"type": "url_citation"}]) | st.none()},
            ),
            max_size=4,
        ).map(lambda messages: [*messages, {"role": "user", "content": "Hello"}]),
    },
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "n": st.integers(1, 4),
        "max_tokens": st.integers(1, 10**7),
        "max_completion_tokens": st.integers(1, 10**7),
        "top_logprobs": st.integers(0, 20),
        "tools": st.lists(
            st.sampled_from(["look", "leap"]).map(
                lambda name: {"type": "function", "function": {"name": name}}
            )
            | st.just({"type": "custom", "custom": {"name": "patch"}}),
            max_size=2,
        ),
        "tool_choice": PLAUSIBLE["tool_choice"]
        | st.just({"type": "custom", "custom": {"name": "patch"}})
        | st.sampled_from(["auto", "required"]).map(
            lambda mode: {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": mode,
                    "tools": [{"type": "function", "function": {"name": "look"}}],
                },
            }
        ),
        "reasoning_effort": EFFORTS,
        "thinking_budget": st.integers(1, 1000),
        "enable_thinking": st.booleans(),
        "response_format": PLAUSIBLE["response_format"],
        "user": TEXTS,
    },
)


@EXAMPLES
@given(
    members=ORDINARY,
    model=st.sampled_from(["qwen3.8-max", "qwen3.7-plus", "qwen3.6-plus", "qwen-plus", "qwen-max"])
    | st.sampled_from(["qwen3-coder-plus", "qwen3-vl-plus", "coder-model", "qwen-turbo"]),
    options=OPTIONS,
)
@example(members={"messages": [{"role": "user", "content": "x"}]}, model="qwen-max", options=LAX)
def test_what_openai_takes_the_host_takes_then(members: Json, model: str, options: Options) -> None:
    if not members.get("tools"):
        members.pop("tool_choice", None)  # OpenAI refuses that, too
    request = request_of({"model": model, "stream": True, **members})
    for family in (Family.SANDBOX, Family.PORTAL):
        made = adapt(request, Target(family, model), options, stream=True)
        body = json.loads(request.body.render(made.changes, drop=made.drop))
        assert sandbox.refusal_for(body) is None
        assert family is Family.SANDBOX or sandbox.portal_refusal(body) is None


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_a_long_conversation_is_not_copied(role: str) -> None:
    messages = [{"role": "user", "content": "x"}, *[{"role": role, "content": "y"}] * 1000]
    request = request_of({"messages": messages})

    made = adapt(request, Target(Family.DASHSCOPE, "qwen3.7-plus"), LAX, stream=True)

    assert made.changed == ()
    assert not made.changes
