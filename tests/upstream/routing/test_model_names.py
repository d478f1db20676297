"""How a client's model name is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.upstream.routing.model_names import Wish, alias_of, at_portal, readings

ACCOUNTS = ("dashscope", "coding-plan")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m", [Wish("m")]),
        ("m-search", [Wish("m-search"), Wish("m", search=True)]),
        (
            "m-thinking-search",
            [
                Wish("m-thinking-search"),
                Wish("m-thinking", search=True),
                Wish("m", search=True, thinking=True),
            ],
        ),
        ("-search", [Wish("-search")]),
        ("dashscope:m", [Wish("dashscope:m"), Wish("m", account="dashscope")]),
        ("qwen3:8b", [Wish("qwen3:8b")]),
        (
            "coding-plan/m",
            [Wish("coding-plan/m"), Wish("m", account="coding-plan"), Wish("m")],
        ),
        ("openai/m", [Wish("openai/m"), Wish("m")]),
        ("Qwen/Qwen3-8B", [Wish("Qwen/Qwen3-8B"), Wish("Qwen3-8B")]),
        (
            "dashscope:openai/m-search",
            [
                Wish("dashscope:openai/m-search"),
                Wish("dashscope:openai/m", search=True),
                Wish("openai/m-search", account="dashscope"),
                Wish("openai/m", account="dashscope", search=True),
                Wish("m-search", account="dashscope"),
                Wish("m", account="dashscope", search=True),
            ],
        ),
        ("/m", [Wish("/m"), Wish("m")]),
        ("m/", [Wish("m/")]),
        (":m", [Wish(":m")]),
    ],
)
def test_the_most_literal_reading_comes_first(name: str, expected: list[Wish]) -> None:
    assert list(readings(name, aliases={}, accounts=ACCOUNTS)) == expected


def test_aliases_stand_for_anything_that_may_be_asked() -> None:
    aliases = {"gpt-4o": "dashscope:m-thinking", "gpt-*": "n", "gpt-4*": "o"}
    assert alias_of("gpt-4o", aliases) == "dashscope:m-thinking"
    assert alias_of("gpt-4.1", aliases) == "o"
    assert alias_of("gpt-5", aliases) == "n"
    assert alias_of("claude", aliases) is None
    assert Wish("m", account="dashscope", thinking=True) in list(
        readings("gpt-4o", aliases=aliases, accounts=ACCOUNTS)
    )


@given(st.text(max_size=40))
def test_every_name_can_be_read_and_first_of_all_as_it_is(name: str) -> None:
    found = list(readings(name, aliases={}, accounts=ACCOUNTS))
    assert found[0] == Wish(name)
    assert len(set(found)) == len(found)
    assert all(wish.model or not name for wish in found)


def test_the_portal_has_one_model() -> None:
    assert at_portal("qwen3-coder-plus") == "coder-model"
    assert at_portal("gpt-4o") is None
