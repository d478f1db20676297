"""Items translated to messages of a chat."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.responses.content import pack_thinking
from qwen_wsgi.protocol.responses.conversation import INTERRUPTED
from tests.protocol.responses.support import chat, messages, request


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "id": "msg_1", "content": [part]}


def function_call(id: str, name: str = "shell", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}


def output(id: str, value: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": value}


def thought(text: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": summary}


def tool_call(id: str, name: str = "shell", arguments: str = "{}") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def tool(id: str, text: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


def refusal(input: Any, **members: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        request(input, **members)
    return caught.value


def test_a_string_is_a_message_of_the_user_behind_the_instructions() -> None:
    assert messages("hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        user("hi"),
    ]
    assert messages("hi") == [user("hi")]
    assert messages("hi", instructions="") == [user("hi")]


def test_messages_with_and_without_a_type() -> None:
    given = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": [{"type": "input_text", "text": "s"}]},
        {"role": "user", "content": "u", "phase": "x"},
        {"type": "message", "role": "assistant", "content": "a", "phase": "final_answer"},
    ]
    assert messages(given) == [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "s"},
        user("u"),
        {"role": "assistant", "content": "a"},
    ]


def test_images_and_sounds_are_parts() -> None:
    url = "data:image/png;base64,AAAA"
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "original"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    assert messages([{"role": "user", "content": content}])[0]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "high"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]


def test_what_the_assistant_refused_was_said() -> None:
    content = [{"type": "output_text", "text": "Well, "}, {"type": "refusal", "refusal": "no."}]
    assert messages([{"role": "assistant", "content": content}, user("why")])[0] == {
        "role": "assistant",
        "content": "Well, no.",
    }


def test_calls_in_a_row_are_one_message_with_the_text_before_them() -> None:
    given = [
        user("go"),
        assistant("I look."),
        function_call("a"),
        function_call("b", "read", '{"p":1}'),
        output("b", "B"),
        output("a", "A"),
        assistant("Done."),
    ]
    assert messages(given) == [
        user("go"),
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [tool_call("a"), tool_call("b", "read", '{"p":1}')],
        },
        tool("a", "A"),
        tool("b", "B"),
        {"role": "assistant", "content": "Done."},
    ]


def test_calls_one_after_the_other_are_two_messages() -> None:
    given = [user("go"), function_call("a"), output("a"), function_call("b"), output("b")]
    assert [each["role"] for each in messages(given)] == [
        *("user", "assistant", "tool", "assistant", "tool")
    ]


def test_what_stands_between_a_call_and_its_output_comes_behind() -> None:
    given = [user("go"), function_call("a"), user("hurry"), output("a")]
    translated = messages(given)
    assert translated[1]["tool_calls"] == [tool_call("a")]
    assert translated[2:] == [tool("a"), user("hurry")]


def test_a_call_that_was_never_answered_is_said_to_be_interrupted() -> None:
    its = request([user("go"), function_call("a"), function_call("b"), output("b"), user("stop")])
    assert its.chat.body["messages"][2:] == [tool("a", INTERRUPTED), tool("b"), user("stop")]
    assert its.changed == ("input:interrupted-call-answered",)


def test_an_output_without_a_call_is_refused_as_openai_does() -> None:
    error = refusal([user("go"), output("call_9")])
    assert error.message == "No tool call found for function call output with call_id call_9."
    assert (error.status, error.param) == (400, "input")


def test_ids_that_are_used_again_in_every_turn() -> None:
    given = [
        *(user("1"), function_call("call_0"), output("call_0", "first")),
        *(user("2"), function_call("call_0"), output("call_0", "second")),
    ]
    assert [each["content"] for each in messages(given) if each["role"] == "tool"] == [
        "first",
        "second",
    ]


def test_a_second_output_of_one_call_is_not_lost() -> None:
    given = [user("go"), function_call("a"), output("a", "one"), output("a", "two")]
    assert messages(given)[-1] == tool("a", "one\ntwo")


def test_outputs_of_parts_give_their_images_to_the_user_behind_all_outputs() -> None:
    image = {"type": "input_image", "image_url": "https://example.org/a.png"}
    parts = [{"type": "input_text", "text": "a"}, image, {"type": "input_text", "text": "b"}]
    given = [
        *(user("go"), function_call("a"), function_call("b"), function_call("c")),
        *(output("a", parts), output("b", [image]), output("c", [])),
    ]
    translated = messages(given)
    assert translated[2:5] == [
        tool("a", "a\nb"),
        tool("b", "[See the next message.]"),
        tool("c", ""),
    ]
    assert translated[5]["role"] == "user"
    assert [part["type"] for part in translated[5]["content"]] == ["text", "image_url"] * 2
    assert translated[5]["content"][2]["text"] == "[Output of shell, call b]"


def test_custom_calls_are_functions_with_an_input() -> None:
    given = [
        user("go"),
        {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": 'x "y"\n'},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "ok"},
    ]
    assert messages(given)[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [tool_call("a", "apply_patch", '{"input":"x \\"y\\"\\n"}')],
        },
        tool("a", "ok"),
    ]


def test_shell_calls_of_another_history_are_told_as_functions() -> None:
    action = {"type": "exec", "command": ["ls"], "env": {}}
    operation = {"type": "delete_file", "path": "a"}
    given = [
        user("go"),
        {"type": "local_shell_call", "id": "l1", "call_id": "a", "action": action},
        {"type": "local_shell_call_output", "id": "a", "output": "{}"},
        {"type": "apply_patch_call", "call_id": "b", "operation": operation, "status": "completed"},
        {"type": "apply_patch_call_output", "call_id": "b", "status": "completed", "output": "k"},
    ]
    translated = messages(given)
    assert translated[1]["tool_calls"][0]["function"] == {
        "name": "local_shell",
        "arguments": '{"type":"exec","command":["ls"],"env":{}}',
    }
    assert translated[2] == tool("a", "{}")
    assert translated[3]["tool_calls"][0]["function"]["name"] == "apply_patch"
    assert translated[4] == tool("b", '"k"')


def test_thinking_belongs_to_the_message_behind_it() -> None:
    given = [
        *(
            user("go"),
            thought("first"),
            assistant("I look."),
            thought("second"),
            function_call("a"),
        ),
        *(output("a"), thought("third"), assistant("Done."), user("thanks")),
    ]
    translated = messages(given)
    assert translated[1]["reasoning_content"] == "first\n\nsecond"
    assert translated[1]["content"] == "I look."
    assert translated[3] == {"role": "assistant", "content": "Done.", "reasoning_content": "third"}


def test_thinking_without_a_message_is_forgotten() -> None:
    translated = messages([user("go"), thought("lost"), user("again"), assistant("ok"), user("x")])
    assert all("reasoning_content" not in each for each in translated)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"summary": [], "encrypted_content": pack_thinking("own")}, "own"),
        ({"summary": [{"text": "s"}, {"text": "t"}], "encrypted_content": "gAAAA"}, "s\n\nt"),
        ({"summary": [{"text": "s"}], "content": [{"text": "c"}]}, "c"),
        ({"summary": [{"text": "s"}], "content": None, "encrypted_content": 5}, "s"),
    ],
)
def test_where_thinking_is_found(item: dict[str, Any], expected: str) -> None:
    translated = messages([user("go"), {"type": "reasoning", **item}, assistant("ok")])
    assert translated[1]["reasoning_content"] == expected


@pytest.mark.parametrize("content", ["gAAAA==", "qwen-proxy-unencrypted-1:%%%", "", None, {}, 1])
def test_what_others_packed_is_passed_over(content: Any) -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": content}
    assert messages([user("go"), item, assistant("ok")])[1] == {
        "role": "assistant",
        "content": "ok",
    }


def test_items_that_chat_cannot_tell_are_dropped_and_noted() -> None:
    given = [
        user("go"),
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "computer_call", "id": "cu_1"},
    ]
    its = request(given)
    assert its.chat.body["messages"] == [user("go")]
    assert its.changed == ("input:computer_call-dropped",)
    with pytest.raises(BadRequest):
        request(given, strict=True)


def test_history_stands_between_the_instructions_and_the_input() -> None:
    history = [{"type": "message", "id": "m1", **user("old")}, {**assistant("yes"), "id": "m2"}]
    its = request("new", history=history, instructions="sys", previous_response_id="resp_1")
    assert [each["content"] for each in its.chat.body["messages"]] == ["sys", "old", "yes", "new"]
    assert [item["content"] for item in its.input_items] == [
        [{"type": "input_text", "text": "new"}]
    ]
    assert its.previous_response_id == "resp_1"


def test_an_output_finds_its_call_in_the_history() -> None:
    translated = messages([output("a")], history=[user("go"), function_call("a")])
    assert translated[-1] == tool("a")


def test_references_stand_for_stored_items() -> None:
    stored = {"msg_7": {**assistant("kept"), "id": "msg_7"}}
    given = [user("go"), {"type": "item_reference", "id": "msg_7"}, {"id": "msg_7"}, user("on")]
    its = request(given, stored=stored)
    assert [each["content"] for each in its.chat.body["messages"]] == ["go", "kept", "on"]
    assert [item["id"] for item in its.input_items][1] == "msg_7"


def test_a_reference_into_the_history_says_nothing_new() -> None:
    history = [{"type": "message", "id": "m1", **user("old")}]
    assert messages([{"type": "item_reference", "id": "m1"}, user("new")], history=history) == [
        user("old"),
        user("new"),
    ]


def test_a_reference_that_nobody_knows_is_refused() -> None:
    error = refusal([{"type": "item_reference", "id": "msg_7"}])
    assert "msg_7" in error.message
    assert error.param == "input[0].id"


def test_tools_that_an_item_brings_count() -> None:
    tools = [{"type": "function", "name": "late", "parameters": {"type": "object"}}]
    given = [user("go"), {"type": "additional_tools", "role": "developer", "tools": tools}]
    assert [each["function"]["name"] for each in chat(given)["tools"]] == ["late"]
    assert len(chat(given, tools=tools)["tools"]) == 1


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ("text", "input[0]", "invalid_type"),
        ({}, "input[0].type", "missing_required_parameter"),
        ({"type": 5}, "input[0].type", "invalid_type"),
        ({"type": "text", "text": "x"}, "input[0].type", "invalid_value"),
        ({"type": "message", "content": "x"}, "input[0].role", "missing_required_parameter"),
        ({"role": "tool", "content": "x"}, "input[0].role", "invalid_value"),
        ({"role": "user"}, "input[0].content", "missing_required_parameter"),
        ({"role": "user", "content": 5}, "input[0].content", "invalid_type"),
        ({"role": "user", "content": ["x"]}, "input[0].content[0]", "invalid_type"),
        ({"role": "user", "content": [{}]}, "input[0].content[0].type", None),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]},
            "input[0].content[0].file_id",
            "unsupported_value",
        ),
        (
            {"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]},
            "input[0].content",
            "invalid_value",
        ),
        ({"type": "function_call", "call_id": "a", "arguments": ""}, "input[0].name", None),
        ({"type": "function_call", "name": "f", "arguments": ""}, None, None),
        ({"type": "function_call_output", "output": ""}, "input[0].call_id", None),
        ({"type": "compaction", "encrypted_content": "x"}, "input[0].encrypted_content", None),
        ({"type": "compaction_trigger"}, "input", "empty_array"),
    ],
)
def test_items_that_are_refused(item: Any, param: str | None, code: str | None) -> None:
    if param is None:
        assert request([item]).chat.body["messages"]  # its own id stands in for the call's
        return
    error = refusal([item])
    assert error.param == param
    assert code is None or error.code == code


def test_input_without_anything_to_answer_is_refused() -> None:
    assert refusal([]).code == "empty_array"
    assert refusal([thought("x")]).param == "input"
    assert refusal(None).code == "missing_required_parameter"
    assert refusal(5).code == "invalid_type"


def test_input_items_have_ids_that_are_the_same_every_time() -> None:
    given = [user("a"), thought("t"), function_call("c"), {**output("c"), "id": ""}]
    ids = [item["id"] for item in request(given).input_items]
    stem = "0123456789abcdef"
    assert ids == [f"msg_{stem}_in0", "rs_1", f"fc_{stem}_in2", f"fco_{stem}_in3"]
    assert [item["id"] for item in request(given).input_items] == ids


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({"at": 1}, '{"at":1}'),
        (None, "{}"),
        ([1], '{"arguments_that_are_no_json_object":"[1]"}'),
    ],
)
def test_arguments_that_are_no_text_are_made_an_object(arguments: Any, sent: str) -> None:
    item = {**function_call("a"), "arguments": arguments}
    its = request([item])

    call = its.chat.body["messages"][0]["tool_calls"][0]
    assert call["function"]["arguments"] == sent
    assert its.input_items[0]["arguments"] == sent


def test_an_input_of_a_custom_call_that_is_no_text_is_made_one() -> None:
    item = {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": {"at": 1}}

    (call,) = messages([item])[0]["tool_calls"]
    assert call["function"]["arguments"] == '{"input":"{\\"at\\":1}"}'


@pytest.mark.parametrize(
    "file",
    [
        {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
        {"filename": "a.pdf", "file_url": "https://example.com/a.pdf"},
        {"file_id": "file_1"},
    ],
    ids=str,
)
def test_a_file_that_cannot_be_read_is_told_in_words(file: dict[str, Any]) -> None:
    given = [{"role": "user", "content": [{"type": "input_file", **file}]}]
    its = request(given)

    content = its.chat.body["messages"][0]["content"]
    assert content.startswith("[A document") and "was left out here" in content
    assert ("'a.pdf'" in content) == ("filename" in file)
    assert its.changed == ("input:file-left-out",)
    assert refusal(given, strict=True).param == "input"


def test_a_file_of_plain_text_is_read() -> None:
    file = {"type": "input_file", "filename": "a.md", "file_data": "data:text/markdown;base64,aGk="}

    its = request([{"role": "user", "content": [file]}])

    assert its.chat.body["messages"][0]["content"] == "a.md\n\nhi"
    assert its.changed == ()
