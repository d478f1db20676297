"""Conversations of Anthropic's form translated to chat messages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.messages import parse_prompt
from qwen_wsgi.protocol.messages.history import FAILED, UNANSWERED, messages_of

MARK = {"cache_control": {"type": "ephemeral"}}


def text(words: str, **rest: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **rest}


def use(id: str, name: str = "read", **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(id: str, content: Any = "done", **rest: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **rest}


def image(data: str = "aGk=") -> dict[str, Any]:
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": data},
    }


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def chat(*messages: Any, **rest: Any) -> list[dict[str, Any]]:
    translated: list[dict[str, Any]] = parse_prompt({"messages": list(messages), **rest})[
        "messages"
    ]
    return translated


def changed(*messages: Any) -> tuple[str, ...]:
    changes = Changes()
    list(messages_of(list(messages), changes))
    return changes.entries


def refused(*messages: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(*messages)
    assert caught.value.status == 400
    return caught.value


# --- system -------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.")]])
def test_a_system_text_is_the_first_message(system: Any) -> None:
    assert chat(user(text("a")), system=system)[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("system", [None, "", [], [text("")]])
def test_without_one_there_is_none(system: Any) -> None:
    assert [each["role"] for each in chat(user(text("a")), system=system)] == ["user"]


def test_marks_for_the_cache_stay_in_qwens_form() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
    translated = chat(user(text("a")), system=[text("one"), text("two", **mark)])

    assert translated[0]["content"] == [text("one"), text("two", **MARK)]


BILLING = "x-anthropic-billing-header: cc_version=2.1.99.abc; cc_entrypoint=cli; cch=1f2e3;"


@pytest.mark.parametrize(
    ("system", "left"),
    [
        ([text(BILLING), text("one"), text("two", **MARK)], [text("one"), text("two", **MARK)]),
        ([text(BILLING), text("one")], "one"),
        (BILLING + "\n\nYou write code.", "You write code."),
    ],
)
def test_the_text_by_which_calls_are_billed_is_left_out(system: Any, left: Any) -> None:
    assert chat(user(text("a")), system=system)[0]["content"] == left


def test_of_a_request_with_nothing_but_that_text_no_system_is_left() -> None:
    assert chat(user(text("a")), system=BILLING)[0]["role"] == "user"


def test_a_system_text_in_the_middle_is_a_reminder_to_the_user() -> None:
    translated = chat(
        user(text("a")),
        assistant(text("b")),
        {"role": "system", "content": "Stay in /src."},
        user(text("c")),
    )

    assert translated[2] == {
        "role": "user",
        "content": [
            text("<system-reminder>\nStay in /src.\n</system-reminder>"),
            text("c"),
        ],
    }


def test_a_reminder_before_results_does_not_part_them_from_their_calls() -> None:
    translated = chat(
        user(text("a")),
        assistant(use("t1")),
        {"role": "system", "content": [text("<system-reminder>x</system-reminder>")]},
        user(result("t1")),
    )

    assert [each["role"] for each in translated] == ["user", "assistant", "tool", "user"]
    assert translated[3]["content"] == "<system-reminder>x</system-reminder>"


# --- what the user says -------------------------------------------------------------------------


def test_strings_and_single_texts_are_strings() -> None:
    assert chat({"role": "user", "content": "a"}) == chat(user(text("a")))
    assert chat(user(text("a")))[0]["content"] == "a"


def test_messages_of_one_role_are_one_turn() -> None:
    translated = chat(user(text("a")), user(text("b")), assistant(text("c")), assistant(text("d")))

    assert [each["content"] for each in translated] == [[text("a"), text("b")], "cd"]


@pytest.mark.parametrize(
    ("source", "url"),
    [
        (
            {"type": "base64", "media_type": "image/webp", "data": "aGk="},
            "data:image/webp;base64,aGk=",
        ),
        ({"type": "url", "url": "https://example.com/a.png"}, "https://example.com/a.png"),
    ],
)
def test_images(source: Any, url: str) -> None:
    translated = chat(user(text("what?"), {"type": "image", "source": source, **MARK}))

    assert translated[0]["content"][1] == {"type": "image_url", "image_url": {"url": url}, **MARK}


def test_documents_as_far_as_they_are_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "Once upon"}
    translated = chat(user({"type": "document", "source": plain, "title": "Tale"}, text("?")))
    assert translated[0]["content"][0] == text("Tale\n\nOnce upon")

    parts = {"type": "content", "content": [text("page"), image()]}
    translated = chat(user({"type": "document", "source": parts}))
    assert [part["type"] for part in translated[0]["content"]] == ["text", "image_url"]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (
            {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "application/pdf",
        ),
        ({"type": "base64", "media_type": "text/plain", "data": "///"}, "text/plain"),
        ({"type": "url", "url": "https://example.com/a.pdf"}, "url"),
        ({"type": "file", "file_id": "file_1"}, "file"),
    ],
    ids=str,
)
def test_a_document_that_cannot_be_read_is_told_in_words(source: Any, kind: str) -> None:
    document = {"type": "document", "source": source, "title": "Tale"}
    words = f"[A document 'Tale' ({kind}) was left out here"

    direct = chat(user(document, text("?")))
    assert words in direct[0]["content"][0]["text"]
    in_result = chat(user(text("a")), assistant(use("t1")), user(result("t1", [document])))
    assert words in in_result[2]["content"]
    assert changed(user(document)) == ("messages:document-left-out",)
    with pytest.raises(BadRequest):
        list(messages_of([user(document)], Changes(strict=True)))


@pytest.mark.parametrize("media", ["text/html", "text/plain; charset=utf-8", "application/json"])
def test_a_document_of_plain_text_is_read(media: str) -> None:
    data = base64.b64encode("Es war größer.".encode()).decode()
    source = {"type": "base64", "media_type": media, "data": data}

    assert chat(user({"type": "document", "source": source}))[0]["content"] == "Es war größer."
    assert changed(user({"type": "document", "source": source})) == ()


def test_search_results_are_texts() -> None:
    found = {
        "type": "search_result",
        "title": "Rain",
        "source": "https://example.com",
        "content": [text("It rains."), text("Often.")],
    }

    assert chat(user(found))[0]["content"] == "Rain\nhttps://example.com\nIt rains.\nOften."


# --- the assistant ------------------------------------------------------------------------------


def test_thinking_of_whoever_goes_with_its_message() -> None:
    translated = chat(
        user(text("a")),
        assistant(
            {"type": "thinking", "thinking": "Hm.", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"},
            {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
            text("b"),
        ),
        user(text("c")),
    )

    assert translated[1] == {"role": "assistant", "content": "b", "reasoning_content": "Hm."}


def test_calls_have_their_input_as_json() -> None:
    translated = chat(user(text("a")), assistant(text("I read."), use("t1", path="ä.py", n=1)))

    assert translated[1]["content"] == "I read."
    (call,) = translated[1]["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == ("t1", "function", "read")
    assert json.loads(call["function"]["arguments"]) == {"path": "ä.py", "n": 1}


def test_an_answer_that_is_to_be_gone_on_with_is_partial() -> None:
    assert chat(user(text("a")), assistant(text("It is")))[-1] == {
        "role": "assistant",
        "content": "It is",
        "partial": True,
    }
    assert "partial" not in chat(user(text("a")), assistant(text("b")), user(text("c")))[1]


def test_marks_on_answers_stay() -> None:
    translated = chat(user(text("a")), assistant(text("b", **MARK)), user(text("c", **MARK)))

    assert translated[1]["content"] == [text("b", **MARK)]
    assert translated[2]["content"] == [text("c", **MARK)]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
        {"type": "code_execution_tool_result", "tool_use_id": "s1", "content": {}},
        {"type": "mcp_tool_use", "id": "s1", "name": "x", "input": {}},
    ],
)
def test_what_anthropics_servers_did_is_left_out(block: Any) -> None:
    messages = [user(text("a")), assistant(block, text("b")), user(text("c"))]

    assert chat(*messages)[1] == {"role": "assistant", "content": "b"}
    assert changed(*messages) == ("messages:server-tools-dropped",)


def test_a_message_of_which_nothing_is_left_is_left_out() -> None:
    gone = {"type": "redacted_thinking", "data": "x"}

    assert [each["role"] for each in chat(user(text("a")), assistant(gone))] == ["user"]


# --- results ------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_calls_before_what_the_user_says() -> None:
    translated = chat(
        user(text("a")),
        assistant(use("t1"), use("t2"), use("t3")),
        user(text("and now?"), result("t3", "three"), result("t1", "one"), result("t2", "two")),
    )

    assert [(m["role"], m.get("tool_call_id"), m["content"]) for m in translated[2:]] == [
        ("tool", "t1", "one"),
        ("tool", "t2", "two"),
        ("tool", "t3", "three"),
        ("user", None, "and now?"),
    ]


def test_results_may_come_in_several_messages() -> None:
    translated = chat(
        user(text("a")), assistant(use("t1"), use("t2")), user(result("t2")), user(result("t1"))
    )

    assert [each.get("tool_call_id") for each in translated[2:]] == ["t1", "t2"]


def test_an_interrupted_turn_says_so() -> None:
    translated = chat(
        user(text("a")), assistant(use("t1"), use("t2")), user(result("t1"), text("Stop that."))
    )

    assert translated[3] == {"role": "tool", "tool_call_id": "t2", "content": UNANSWERED}
    assert translated[4]["content"] == "Stop that."


def test_calls_at_the_end_are_answered_too() -> None:
    translated = chat(user(text("a")), assistant(use("t1")))

    assert translated[-1] == {"role": "tool", "tool_call_id": "t1", "content": UNANSWERED}
    assert "partial" not in translated[1]


def test_the_same_ids_in_two_turns_are_kept_apart() -> None:
    translated = chat(
        user(text("a")),
        assistant(use("t1")),
        user(result("t1", "one")),
        assistant(use("t1")),
        user(result("t1", "two")),
    )

    assert [each["content"] for each in translated if each["role"] == "tool"] == ["one", "two"]


@pytest.mark.parametrize(
    ("input", "arguments"),
    [
        ('{"path": "a.py"}', '{"path": "a.py"}'),
        ("", "{}"),
        (None, "{}"),
        (["a"], '{"arguments_that_are_no_json_object":"[\\"a\\"]"}'),
        ("a.py", '{"arguments_that_are_no_json_object":"a.py"}'),
    ],
)
def test_an_input_that_is_no_object_is_made_one(input: Any, arguments: str) -> None:
    messages = [user(text("a")), assistant({**use("t1"), "input": input}), user(result("t1"))]

    assert chat(*messages)[1]["tool_calls"][0]["function"]["arguments"] == arguments
    assert changed(*messages) == ("messages:input-made-object",)


def test_a_failed_tool_is_told_in_words() -> None:
    translated = chat(
        user(text("a")), assistant(use("t1")), user(result("t1", "no", is_error=True))
    )

    assert translated[2]["content"] == FAILED + "no"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        ([text("a"), text("b")], "a\nb"),
        ([{"type": "tool_reference", "tool_name": "grep"}], "Tool: grep"),
    ],
)
def test_the_text_of_a_result(content: Any, words: str) -> None:
    assert chat(user(text("a")), assistant(use("t")), user(result("t", content)))[2] == {
        "role": "tool",
        "tool_call_id": "t",
        "content": words,
    }


@pytest.mark.parametrize("marked", [result("t1", [text("a", **MARK)]), result("t1", "a", **MARK)])
def test_a_mark_on_a_result_stays(marked: Any) -> None:
    translated = chat(user(text("a")), assistant(use("t1")), user(marked))

    assert translated[2]["content"] == [text("a", **MARK)]


def test_images_in_results_are_shown_by_the_user() -> None:
    translated = chat(
        user(text("a")),
        assistant(use("t1"), use("t2")),
        user(result("t1", [text("shot"), image("QQ==")]), result("t2", [image()]), text("look")),
    )

    assert translated[2]["content"].startswith("shot\n[1 image")
    assert translated[3]["content"].startswith("[1 image")
    kinds = [part["type"] for part in translated[4]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    assert "t1" in translated[4]["content"][0]["text"]
    assert translated[4]["content"][1]["image_url"]["url"] == "data:image/png;base64,QQ=="


@pytest.mark.parametrize(
    "messages",
    [
        [user(result("t1"))],
        [user(text("a")), assistant(text("b")), user(result("t1"))],
        [user(text("a")), assistant(use("t2")), user(result("t1"), result("t2"))],
        [user(text("a")), assistant(use("t1")), user(result("t1"), result("t1"))],
        [
            user(text("a")),
            assistant(use("t1")),
            user(result("t1")),
            assistant(text("b")),
            user(result("t1")),
        ],
    ],
)
def test_a_result_without_its_call_is_refused(messages: list[Any]) -> None:
    assert "`tool_use_id`" in refused(*messages).message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"content": "a"}], "messages.0.role"),
        ([{"role": 1, "content": "a"}], "messages.0.role"),
        ([{"role": "tool", "content": "a"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": 1}], "messages.0.content"),
        ([user("a")], "messages.0.content.0"),
        ([user({})], "messages.0.content.0.type"),
        ([user({"type": "poem"})], "messages.0.content.0.type"),
        ([user({"type": "text"})], "messages.0.content.0.text"),
        ([user(use("t1"))], "messages.0.content.0.type"),
        ([user({"type": "image"})], "messages.0.content.0.source"),
        (
            [user({"type": "image", "source": {"type": "file", "file_id": "f"}})],
            "messages.0.content.0.source",
        ),
        ([user({"type": "tool_result"})], "messages.0.content.0.tool_use_id"),
        ([assistant(result("t1"))], "messages.0.content.0.type"),
        ([assistant(image())], "messages.0.content.0.type"),
        ([assistant({"type": "thinking"})], "messages.0.content.0.thinking"),
        ([assistant({"type": "tool_use"})], "messages.0.content.0.name"),
        ([assistant(use("t"), use("t"))], "messages.0.content.0"),
        ([user(text(""))], "messages"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_its_place(
    messages: list[Any], param: str
) -> None:
    assert refused(*messages).param == param
