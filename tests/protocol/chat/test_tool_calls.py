"""Which call a fragment belongs to."""

from __future__ import annotations

import pytest

from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat.tool_calls import ToolCalls, WholeCalls
from tests.kit.quirks import fragment


@pytest.mark.parametrize(
    ("fragments", "numbers"),
    [
        # index, id, name, arguments -> which call
        ([(0, "a", "f", "{}"), (0, "b", "f", "")], [0, 1]),
        ([(0, "a", "f", ""), (0, "b", "g", "")], [0, 1]),
        ([(0, "a", "f", '{"x'), (0, "b", "f", "{}")], [0, 1]),
        ([(0, "a", "f", '{"x'), (0, "b", None, '":1}')], [0, 0]),
        ([(0, "a", "f", "{}"), (0, "b", None, "{}")], [0, 1]),
        ([(0, "a", "f", "{}"), (0, "b", None, "")], [0, 0]),
        ([(0, "a", "f", "{}"), (0, "", None, " ")], [0, 0]),
        ([(0, "", "f", "{}"), (0, "", "f", "")], [0, 0]),
        ([(0, "", "f", "{}"), (0, "", "f", "{}")], [0, 1]),
        ([(0, "", "f", "{"), (0, "", "g", "{")], [0, 1]),
        ([(None, "", "f", "{}"), (None, "", "f", '{"a":1}')], [0, 1]),
        (
            [(0, "a", "f", ""), (0, "b", "g", ""), (0, "a", None, "{}"), (0, "", None, "")],
            [0, 1, 0, 0],
        ),
        ([(0, "a", "f", ""), (1, "b", "g", ""), (None, "", None, "{}")], [0, 1, 1]),
        ([(0, "a", "f", ""), (1, "", None, "{}")], [0, 0]),
        ([(5, "a", "f", ""), (3, "b", "g", ""), (5, "", None, "{}")], [0, 1, 0]),
        # One id for several calls; only a repetition has the same index and arguments.
        ([(0, "a", "f", "{}"), (0, "a", "f", "{ }")], [0, None]),
        ([(0, "a", "f", "{}"), (0, "a", "f", '{"x":1}')], [0, 1]),
        ([(0, "a", "f", "{}"), (1, "a", "f", "{}")], [0, 1]),
        ([(0, "a", "f", "{}"), (1, "a", "f", "{}"), (1, "a", "f", "{}")], [0, 1, None]),
        ([(0, "a", "f", "{"), (1, "a", "f", "{"), (0, "a", None, "}")], [0, 1, 0]),
        (
            [(0, "a", "f", ""), (1, "a", "f", ""), (1, "a", "f", "{"), (0, "a", "f", "")],
            [0, 1, 1, 0],
        ),
        ([(0, "a", "f", "{}"), (1, "a", None, "x")], [0, 0]),
        ([(None, "a", "f", "{}"), (None, "a", "g", ""), (None, "a", None, "{}")], [0, 1, 1]),
        ([(0, "a", "f", "{}"), (0, "a", None, "x")], [0, 0]),
    ],
    ids=str,
)
def test_a_fragment_belongs_to_the_call_it_is_meant_for(
    fragments: list[tuple[int | None, str, str | None, str]], numbers: list[int | None]
) -> None:
    calls = ToolCalls()

    taken = [calls.take(fragment(*each)) for each in fragments]

    assert [each and each.call.number for each in taken] == numbers


def test_a_call_that_shares_an_id_gets_one_of_its_own_the_same_in_every_dialect() -> None:
    """DeepSeek and GLM were seen to give parallel calls one id."""
    one, other = WholeCalls(AnswerSize()), WholeCalls(AnswerSize())
    for calls in (one, other):
        for index in range(3):
            calls.take(fragment(index, "call_a", "f", f'{{"x":{index}}}'))

    rendered = one.render("a seed")

    assert rendered == other.render("another seed")
    assert rendered[0]["id"] == "call_a"
    assert len({call["id"] for call in rendered}) == 3
    assert [call["function"]["arguments"] for call in rendered] == ['{"x":0}', '{"x":1}', '{"x":2}']


@pytest.mark.parametrize("arguments", [None, "", " \n"])
def test_a_call_without_arguments_has_an_empty_object_unless_the_answer_was_cut(
    arguments: str | None,
) -> None:
    calls = WholeCalls(AnswerSize())
    calls.take(fragment(0, "a", "f", arguments))

    assert calls.render("")[0]["function"]["arguments"] == "{}"
    assert calls.render("", truncated=True)[0]["function"]["arguments"] == (arguments or "")


@pytest.mark.parametrize(
    ("indexes", "ids"),
    [((5, 3), ["b", "a"]), ((0, 0, 0), ["a", "b", "c"]), ((None, None), ["a", "b"])],
)
def test_whole_calls_are_in_the_order_of_their_indexes_and_then_of_their_coming(
    indexes: tuple[int | None, ...], ids: list[str]
) -> None:
    calls = WholeCalls(AnswerSize())
    for index, id in zip(indexes, "abc", strict=False):
        calls.take(fragment(index, id, "f", "{}"))

    assert [call["id"] for call in calls.render("")] == ids
