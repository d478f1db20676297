"""When the arguments of a call are complete, found out by reading each piece once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol.chat.arguments import Arguments

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
OBJECTS = st.dictionaries(st.text(), JSON)


def grown(*pieces: str | bytes) -> Arguments:
    arguments = Arguments()
    for piece in pieces:
        arguments.extend((piece,))
    return arguments


@pytest.mark.parametrize(
    ("pieces", "complete"),
    [
        ([], False),
        ([""], False),
        (["{"], False),
        (['{"a":1}'], True),
        (['{"a":1}', " \n", ""], True),
        (['{"a":1}', "x"], False),
        (["{}{}"], False),
        (["{}", "{}"], False),
        (["{}]"], False),
        (["{]"], True),  # closed: nothing that follows makes it an object
        (['{"a":', "{}"], False),
        (['{"a":"}'], False),
        (['{"a":"', "}", '"}'], True),
        (['{"a":"\\', '"}'], False),
        (['{"a":"\\', '"', '"}'], True),
        (['{"a":"\\\\', '"}'], True),
        (["[{}]"], False),
        (["x{}"], False),
        (['"}'], False),
        ([b'{\\"a\\":\\"\\u007d', b'\\"}'], True),
        ([b'{\\"a\\":', "1}"], True),
        ([b"\\x}"], False),
        ([b"\xff}"], False),
        (['{"a":' * 5000 + "}"], False),
    ],
    ids=range(24),
)
def test_arguments_are_complete_when_their_object_is_closed(
    pieces: list[str | bytes], complete: bool
) -> None:
    assert grown(*pieces).complete is complete


@given(value=OBJECTS, spaces=st.sampled_from([None, 1]), data=st.data())
def test_an_object_is_complete_at_its_end_and_never_before(
    value: dict[str, Any], spaces: int | None, data: st.DataObject
) -> None:
    is_ascii = data.draw(st.booleans())
    text = json.dumps(value, indent=spaces, ensure_ascii=is_ascii)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=9)))
    arguments = Arguments()
    at = 0
    for cut in [*cuts, len(text)]:
        assert not arguments.complete
        arguments.add(text[at:cut])
        at = cut

    assert arguments.complete
    assert not arguments.empty
    assert arguments.equal(json.dumps(value, ensure_ascii=is_ascii, indent=2))
    assert not arguments.equal(json.dumps({**value, "another": 1}))
    arguments.add("\n")
    assert arguments.complete


@pytest.mark.parametrize("spaces", [(), ("",), (" ", "\n")])
def test_white_space_is_no_argument(spaces: tuple[str, ...]) -> None:
    assert grown(*spaces).empty
    assert not grown(*spaces, "x").empty


def test_no_more_than_some_pieces_are_kept() -> None:
    arguments = grown('{"a":"')
    for _ in range(2000):
        arguments.extend([b"x" * 1000, b"y"])
        assert arguments._waiting_bytes <= 64 * 1024
    assert grown("x" * 100_000)._waiting == []
    arguments.add('"}')
    assert arguments.complete
