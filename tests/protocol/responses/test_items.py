"""Input items take the form in which OpenAI stores them, and keep their meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from qwen_wsgi.protocol.responses import whole
from tests.kit.properties import examples
from tests.protocol.responses.support import ID, INPUT_ITEMS, MODEL, STEM, request
from tests.schemas import check

STORED: TypeAdapter[Any] = TypeAdapter(ResponseItem)

USER = {"role": "user", "content": "go"}
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
CUSTOM_CALL = {"type": "custom_tool_call", "call_id": "a", "name": "f", "input": "x"}


def stored(item: dict[str, Any], *before: dict[str, Any]) -> dict[str, Any]:
    """The form of the last of some items."""
    return request([*before, item]).input_items[-1]


def input_text(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def output_text(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [], **more}


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_a_text_is_a_part(role: str) -> None:
    assert stored({"role": role, "content": "x"}) == {
        "id": f"msg_{STEM}_in0",
        "type": "message",
        "status": "completed",
        "role": role,
        "content": [input_text("x")],
    }


def test_what_the_model_said_is_output() -> None:
    cited = [{"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}]
    parts = [
        {"type": "input_text", "text": "a"},
        {"type": "output_text", "text": "b", "annotations": cited, "logprobs": None},
        {"type": "refusal", "refusal": "c"},
    ]
    item = {"role": "assistant", "content": parts, "phase": "final_answer", "status": "incomplete"}
    assert stored(item) == {
        "id": f"msg_{STEM}_in0",
        "type": "message",
        "status": "incomplete",
        "role": "assistant",
        "phase": "final_answer",
        "content": [output_text("a"), output_text("b", annotations=cited), parts[2]],
    }
    assert stored({"role": "assistant", "content": "d"})["content"] == [output_text("d")]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"image_url": "u"}, {"image_url": "u", "detail": "auto"}),
        ({"image_url": "u", "detail": None}, {"image_url": "u", "detail": "auto"}),
        ({"image_url": "u", "detail": "sharp"}, {"image_url": "u", "detail": "auto"}),
        ({"image_url": "u", "detail": "original"}, {"image_url": "u", "detail": "original"}),
        ({"image_url": {"url": "u"}, "file_id": None}, {"image_url": "u", "detail": "auto"}),
    ],
)
def test_an_image_has_a_detail(image: dict[str, Any], expected: dict[str, Any]) -> None:
    result = stored({"role": "user", "content": [{"type": "input_image", **image}]})
    assert result["content"] == [{"type": "input_image", **expected}]


def test_calls_and_outputs_are_complete() -> None:
    shown = [{"type": "text", "text": "x"}, {"type": "input_image", "image_url": "u"}]
    result = {"type": "function_call_output", "call_id": "a", "output": shown}
    custom = {"type": "custom_tool_call_output", "call_id": "a", "output": "x"}
    assert stored(CALL, USER) == {**CALL, "id": f"fc_{STEM}_in1", "status": "completed"}
    assert stored(CUSTOM_CALL) == {**CUSTOM_CALL, "id": f"ctc_{STEM}_in0", "status": "completed"}
    assert stored(result, CALL) == {
        **result,
        "id": f"fco_{STEM}_in1",
        "status": "completed",
        "output": [input_text("x"), {**shown[1], "detail": "auto"}],
    }
    assert stored(custom, CUSTOM_CALL) == {
        **custom,
        "id": f"ctco_{STEM}_in1",
        "status": "completed",
    }


def test_a_call_without_a_call_id_has_its_own() -> None:
    item = {"type": "function_call", "id": "fc_1", "name": "f", "arguments": "{}"}
    assert stored(item) == {**item, "call_id": "fc_1", "status": "completed"}


def test_thinking_is_a_summary_and_nulls_are_left_out() -> None:
    item = {"type": "reasoning", "id": "rs_1", "content": None, "status": None}
    assert stored({**item, "summary": [{"text": "s"}, 5]}, USER) == {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "s"}],
    }
    result = stored({**item, "content": [{"text": "c"}], "encrypted_content": 5}, USER)
    assert (result["summary"], result["content"]) == ([], [{"type": "reasoning_text", "text": "c"}])
    assert "encrypted_content" not in result


def test_a_search_is_told_with_what_openai_requires() -> None:
    result = stored({"type": "web_search_call"}, USER)
    assert (result["status"], result["action"]) == ("completed", {"type": "search", "query": ""})


def test_what_is_not_read_stays_as_it_is() -> None:
    item = {"type": "computer_call", "id": "cu_1", "action": None, "status": 5}
    assert stored(item, USER) == item


# --- any conversation -------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
STATUSES = st.sampled_from(["in_progress", "completed", "incomplete", None, "odd"])


def items(type: str, **members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"type": st.just(type), **members}, optional={"id": st.none() | TEXTS, "status": STATUSES}
    )


def part(type: str, member: str = "text") -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(type), member: TEXTS})


IMAGES = st.fixed_dictionaries(
    {"type": st.just("input_image"), "image_url": st.sampled_from(["u", {"url": "u"}])},
    optional={"detail": st.sampled_from(["low", "auto", None, "odd"])},
)
GIVEN = st.lists(part("input_text") | part("output_text") | part("text") | IMAGES, max_size=3)
SAID = st.lists(part("output_text") | part("input_text") | part("refusal", "refusal"), max_size=3)
ROLES = st.sampled_from(["user", "system", "developer"])
IDS = st.sampled_from(["a", "b"])
ITEMS = st.one_of(
    items("message", role=ROLES, content=TEXTS | GIVEN),
    items("message", role=st.just("assistant"), content=TEXTS | SAID),
    items("reasoning", summary=st.lists(part("summary_text"), max_size=2)),
    items("function_call", call_id=IDS, name=st.just("f"), arguments=TEXTS),
    items("custom_tool_call", call_id=IDS, name=st.just("g"), input=TEXTS),
    items("function_call_output", call_id=IDS, output=TEXTS | GIVEN),
    items("custom_tool_call_output", call_id=IDS, output=TEXTS | GIVEN),
    items("web_search_call"),
)
#: Of each call one is there, so that outputs find theirs.
BEFORE = [USER, CALL, {**CUSTOM_CALL, "call_id": "b"}]


@examples(300)
@given(st.lists(ITEMS, max_size=6))
def test_the_form_is_openais_and_means_what_was_sent(given: list[dict[str, Any]]) -> None:
    its = request([*BEFORE, *given])

    for item in its.input_items:
        check("responses#stored_item", item)
        STORED.validate_python(item, strict=True)
        INPUT_ITEMS.validate_python(item)
    again = request(its.input_items)
    assert again.chat.body["messages"] == its.chat.body["messages"]
    assert again.input_items == its.input_items
    # As the history of a later turn.
    later = request("on", history=its.input_items)
    assert later.chat.body["messages"][:-1] == its.chat.body["messages"]


def test_what_a_model_said_can_be_sent_again_and_stays_the_same() -> None:
    message = {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
    completion = {"choices": [{"index": 0, "message": message}]}
    output = whole(request("hi"), completion, id=ID, created=7, model=MODEL)["output"]
    assert request([USER, *output]).input_items[1:] == output
