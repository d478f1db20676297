"""Messages: the place of system messages, legacy tool calls, parts, cache marks."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.adapt import Options, adapt
from tests.upstream.adapt.support import (
    CACHING,
    HELLO,
    LAX,
    STRICT,
    SYSTEM,
    TOOL,
    USER,
    Json,
    adapted,
    part,
    request_of,
    sent,
    target_of,
)


def messages_of(
    messages: list[Json],
    model: str = "qwen3.7-plus",
    family: Family = Family.DASHSCOPE,
    options: Options = LAX,
    *,
    stream: bool = True,
    **members: Any,
) -> Any:
    """The messages that are sent; checks that they are rewritten only if they change."""
    members = {"messages": messages, **members}
    made = adapted(members, target_of(model, family), options, stream=stream)
    after = sent(members, made)["messages"]
    assert ("messages" in made.changes) == (after != messages)
    assert any(entry.startswith("messages:") for entry in made.changed) == (after != messages)
    return after


def system(content: Any, **rest: Any) -> Json:
    return {"role": "system", "content": content, **rest}


def developer(content: Any) -> Json:
    return {"role": "developer", "content": content}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], [USER]),
        (HELLO, HELLO),
        ([developer("a"), USER], [system("a"), USER]),
        ([USER, SYSTEM], [SYSTEM, USER]),
        ([system("a"), USER, system("b"), USER], [system("a\n\nb"), USER, USER]),
        ([system("a"), developer("b"), system("c"), USER], [system("a\n\nb\n\nc"), USER]),
        ([system(""), system("b"), USER], [system("b"), USER]),
        ([system(None), system(""), USER], [system(None), USER]),
        ([{"role": "system"}, USER, system("b")], [system("b"), USER]),
        (
            [system([part("a", marked=True)]), USER, system("b"), developer([part("c")])],
            [system([part("a", marked=True), part("b"), part("c")]), USER],
        ),
        ([system("a"), system([]), USER], [system("a"), USER]),
        ([system("a"), system([part("b")]), USER], [system([part("a"), part("b")]), USER]),
        # What else the first of them has is kept.
        ([USER, system("a", name="x"), system("b", name="y")], [system("a\n\nb", name="x"), USER]),
    ],
    ids=str,
)
def test_there_is_one_system_message_and_it_is_the_first(
    messages: list[Json], expected: list[Json]
) -> None:
    assert messages_of(messages) == expected
    assert messages_of(messages, "glm-5.1", tools=[TOOL]) == expected
    assert messages_of(messages, options=STRICT) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([SYSTEM], [{**SYSTEM, "role": "user"}]),
        ([system("a"), developer("b")], [{"role": "user", "content": "a\n\nb"}]),
        (
            [SYSTEM, {"role": "assistant", "content": "Hi"}],
            [{**SYSTEM, "role": "user"}, {"role": "assistant", "content": "Hi"}],
        ),
        (
            [{"role": "assistant", "content": "Hi"}],
            [{"role": "user", "content": "Continue."}, {"role": "assistant", "content": "Hi"}],
        ),
    ],
    ids=str,
)
def test_a_chat_without_a_user_gets_one(messages: list[Json], expected: list[Json]) -> None:
    assert messages_of(messages) == expected
    assert "messages:user-added" in adapted({"messages": messages}, options=STRICT).changed


@pytest.mark.parametrize("content", [5, {"text": "x"}, True], ids=str)
def test_a_system_message_of_something_else_stays_where_it_is(content: Any) -> None:
    messages = [USER, system(content), system("a")]

    assert messages_of(messages) == messages
    assert messages_of([system(content), USER]) == [system(content), USER]


@pytest.mark.parametrize("model", ["qwen-long", "qwen-long-latest", "qwen-doc-turbo"])
def test_where_every_system_message_is_a_document_they_stay_apart(model: str) -> None:
    messages = [system("You help."), system("fileid://file-fe-1"), developer("x"), USER]

    assert messages_of(messages, model) == [*messages[:2], system("x"), USER]


def test_what_changes_and_what_it_is_called() -> None:
    assert adapted({"messages": [developer("a"), USER]}).changed == (
        "messages:developer-as-system",
    )
    assert adapted({"messages": [USER, SYSTEM]}).changed == ("messages:system-merged",)


def test_messages_that_do_not_change_are_shared_and_nothing_is_touched() -> None:
    request = request_of(messages=[developer("a"), USER, SYSTEM])
    before = copy.deepcopy(request.body["messages"])
    made = adapt(request, target_of(), CACHING, stream=False)

    assert made.changes["messages"][1] is request.body["messages"][1]
    assert request.body["messages"] == before


# --- the old form of tool calls -----------------------------------------------------------------


def call(name: str, arguments: str = "{}", **rest: Any) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": None, "function_call": function, **rest}


def tool_call(count: int, name: str, arguments: str = "{}") -> Json:
    function = {"name": name, "arguments": arguments}
    called = {"id": f"call_function_{count}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [called]}


def told(name: str, content: str) -> Json:
    return {"role": "function", "name": name, "content": content}


def tool_told(count: int, content: str) -> Json:
    return {"role": "tool", "tool_call_id": f"call_function_{count}", "content": content}


def test_calls_of_the_old_form_and_their_answers_find_one_another() -> None:
    messages = [USER, call("look", '{"at": 1}'), told("look", "a"), USER, call("leap")]
    messages += [told("leap", "b"), call("look"), told("look", "c")]

    after = messages_of(messages, options=STRICT)

    assert after == [
        USER,
        tool_call(1, "look", '{"at": 1}'),
        tool_told(1, "a"),
        USER,
        tool_call(2, "leap"),
        tool_told(2, "b"),
        tool_call(3, "look"),
        tool_told(3, "c"),
    ]
    # The same history, and so the same prefix, when the conversation goes on.
    assert messages_of([*messages, USER])[: len(after)] == after


def test_an_answer_that_nobody_called_for_is_left_to_the_host() -> None:
    messages = [USER, told("look", "a"), {"role": "function", "content": "b"}]

    assert messages_of(messages) == messages


def test_nulls_and_nonsense_in_history_stay() -> None:
    null = {"role": "assistant", "content": "Hi", "function_call": None, "tool_calls": None}
    odd = {"role": "assistant", "content": "Hi", "function_call": {"name": 5}}
    messages = [USER, null, odd, USER]

    assert messages_of(messages) == messages
    assert messages_of([*messages, told("x", "y")]) == [*messages, told("x", "y")]


def test_a_call_whose_answer_is_still_to_come() -> None:
    after = messages_of([USER, call("look")], functions=[{"name": "look"}])

    assert after == [USER, tool_call(1, "look")]


# --- parts that would be lost -------------------------------------------------------------------

IMAGE: Json = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize("model", ["glm-4.6", "ZHIPU/GLM-5.3", "glm-new"])
def test_texts_in_parts_for_glm_without_tools_are_joined(model: str) -> None:
    messages = [
        system([part("a"), part("b")]),
        {"role": "user", "content": [part("c")]},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": [part("e"), IMAGE]},
        {"role": "user", "content": []},
    ]

    assert messages_of(messages, model, options=Options(strict=True, cache_control=True)) == [
        system("a\n\nb"),
        {"role": "user", "content": "c"},
        *messages[2:],
    ]


@pytest.mark.parametrize(
    ("messages", "members"),
    [
        ([], {"tools": [TOOL]}),
        ([{"role": "tool", "tool_call_id": "1", "content": "x"}], {}),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], {}),
    ],
    ids=str,
)
def test_with_tools_parts_stay(messages: list[Json], members: Json) -> None:
    messages = [{"role": "user", "content": [part("a"), part("b")]}, *messages]

    assert messages_of(messages, "glm-5.1", **members) == messages


def test_only_glm_loses_parts_and_only_there() -> None:
    messages = [{"role": "user", "content": [part("a"), part("b")]}]

    assert messages_of(messages, "qwen3.7-plus") == messages
    assert messages_of(messages, "glm-5.1", Family.OTHER) == messages


def test_marks_that_are_lost_with_the_parts_are_a_loss() -> None:
    messages = [{"role": "user", "content": [part("a", marked=True)]}]

    assert messages_of(messages, "glm-5.1") == [{"role": "user", "content": "a"}]
    with pytest.raises(BadRequest) as caught:
        adapted({"messages": messages}, target_of("glm-5.1"), STRICT)
    assert caught.value.param == "messages"


# --- the portal ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "first"),
    [
        ([USER], system([part("", marked=True)])),
        (HELLO, system([part("Be brief.", marked=True)])),
        ([developer("a"), USER], system([part("a", marked=True)])),
        ([{"role": "system"}, USER], system([part("", marked=True)])),
        ([system([]), USER], system([part("", marked=True)])),
        ([system([part("a"), part("b")]), USER], system([part("a"), part("b", marked=True)])),
        ([system([part("a"), IMAGE]), USER], system([part("a", marked=True), IMAGE])),
        ([system([IMAGE]), USER], system([IMAGE, part("", marked=True)])),
        (
            [system([part("a", marked=True), part("b")]), USER],
            system([part("a", marked=True), part("b")]),
        ),
        ([system("a"), USER, system("b")], system([part("a\n\nb", marked=True)])),
    ],
    ids=str,
)
def test_the_portal_gets_the_marked_system_part_that_it_insists_on(
    messages: list[Json], first: Json
) -> None:
    after = messages_of(messages, "coder-model", Family.PORTAL, STRICT)

    assert after[0] == first
    assert [message for message in after if message["role"] == "user"] == [
        message for message in messages if message["role"] == "user"
    ]


# --- marks for the cache ------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["qwen3.7-plus", "qwen3.6-plus", "a-new-model"])
def test_marks_are_where_the_cli_puts_them(model: str) -> None:
    last = {"role": "user", "content": [part("x"), IMAGE]}
    messages = [SYSTEM, USER, last]
    marked_image = {**IMAGE, "cache_control": {"type": "ephemeral"}}

    made = adapted({"messages": messages, "tools": [TOOL, TOOL]}, target_of(model), CACHING)

    after = sent({"messages": messages, "tools": [TOOL, TOOL]}, made)
    assert after["messages"] == [
        system([part("Be brief.", marked=True)]),
        USER,
        {"role": "user", "content": [part("x"), marked_image]},
    ]
    assert after["tools"] == [TOOL, {**TOOL, "cache_control": {"type": "ephemeral"}}]
    assert {"messages:cache-marked", "tools:cache-marked"} <= set(made.changed)


def test_without_a_stream_only_the_system_message_is_marked() -> None:
    members: Json = {"tools": [TOOL], "parallel_tool_calls": True}

    made = adapted(members, options=CACHING, stream=False)

    assert sent(members, made) == {
        **members,
        "messages": [system([part("Be brief.", marked=True)]), USER],
    }
    assert messages_of([USER], options=CACHING, stream=False) == [USER]


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": ""},
        {"role": "user", "content": []},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": 5},
        {"role": "user"},
    ],
    ids=str,
)
def test_what_has_no_part_is_not_marked(last: Json) -> None:
    assert messages_of([USER, last], options=CACHING) == [USER, last]


def test_a_tools_answer_is_marked_like_any_last_message() -> None:
    last = {"role": "tool", "tool_call_id": "1", "content": "42"}

    assert messages_of([USER, last], options=CACHING) == [
        USER,
        {**last, "content": [part("42", marked=True)]},
    ]


def test_a_lone_system_message_is_marked_once() -> None:
    marked = {"role": "user", "content": [part("Be brief.", marked=True)]}
    assert messages_of([SYSTEM], options=CACHING) == [marked]


@pytest.mark.parametrize(
    "members",
    [
        {"messages": [SYSTEM, {"role": "user", "content": [part("a", marked=True)]}, USER]},
        {"tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}], "parallel_tool_calls": True},
    ],
    ids=str,
)
def test_who_sets_marks_sets_them_all(members: Json) -> None:
    assert adapted(members, options=CACHING).changed == ()


@pytest.mark.parametrize(
    "model", ["qwen-max", "qwen-long", "deepseek-v4-pro", "glm-5.2", "qwq-32b"]
)
def test_no_marks_where_they_are_known_to_do_nothing(model: str) -> None:
    assert messages_of(HELLO, model, options=CACHING) == HELLO


def test_no_marks_unless_the_operator_wants_them() -> None:
    assert messages_of(HELLO) == HELLO


def test_the_portals_mark_does_not_stand_in_the_way_of_the_others() -> None:
    after = messages_of(HELLO, "coder-model", Family.PORTAL, CACHING)

    assert after == [
        system([part("Be brief.", marked=True)]),
        {"role": "user", "content": [part("Hello", marked=True)]},
    ]


def test_the_pages_of_an_answer_are_not_sent_back_to_the_host() -> None:
    """OpenAI's clients send an answer's message as it came."""
    citation = {"start_index": 0, "end_index": 3, "title": "A", "url": "https://a.example/"}
    annotations = [{"type": "url_citation", "url_citation": citation}]
    plain = {"role": "assistant", "content": "[1]"}
    answered = {**plain, "annotations": annotations, "search_info": {"search_results": []}}

    assert messages_of([USER, answered, USER], options=STRICT) == [USER, plain, USER]
    empty = {**plain, "annotations": None}
    assert messages_of([USER, empty, USER]) == [USER, empty, USER]
    same = [USER, answered, USER]
    assert messages_of(same, "gpt-5", Family.OTHER) == same
