"""How a client's model name is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.upstream.routing.model_names import (
    OLD_NAMES,
    ModelRef,
    alias_of,
    at_portal,
    interpretations,
    listed_aliases,
)

ACCOUNTS = ("dashscope", "coding-plan")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m", [ModelRef("m")]),
        ("m-search", [ModelRef("m-search"), ModelRef("m", search=True)]),
        (
            "m-thinking-search",
            [
                ModelRef("m-thinking-search"),
                ModelRef("m-thinking", search=True),
                ModelRef("m", search=True, thinking=True),
            ],
        ),
        ("-search", [ModelRef("-search")]),
        ("dashscope:m", [ModelRef("dashscope:m"), ModelRef("m", account="dashscope")]),
        ("qwen3:8b", [ModelRef("qwen3:8b")]),
        (
            "coding-plan/m",
            [ModelRef("coding-plan/m"), ModelRef("m", account="coding-plan"), ModelRef("m")],
        ),
        ("openai/m", [ModelRef("openai/m"), ModelRef("m")]),
        ("Qwen/Qwen3-8B", [ModelRef("Qwen/Qwen3-8B"), ModelRef("Qwen3-8B")]),
        (
            "dashscope:openai/m-search",
            [
                ModelRef("dashscope:openai/m-search"),
                ModelRef("dashscope:openai/m", search=True),
                ModelRef("openai/m-search", account="dashscope"),
                ModelRef("openai/m", account="dashscope", search=True),
                ModelRef("m-search", account="dashscope"),
                ModelRef("m", account="dashscope", search=True),
            ],
        ),
        ("/m", [ModelRef("/m"), ModelRef("m")]),
        ("m/", [ModelRef("m/")]),
        (":m", [ModelRef(":m")]),
    ],
)
def test_the_most_literal_reading_comes_first(name: str, expected: list[ModelRef]) -> None:
    assert list(interpretations(name, aliases={}, accounts=ACCOUNTS)) == expected


def test_aliases_stand_for_anything_that_may_be_asked() -> None:
    aliases = {"gpt-4o": "dashscope:m-thinking", "gpt-*": "n", "gpt-4*": "o"}
    assert alias_of("gpt-4o", aliases) == "dashscope:m-thinking"
    assert alias_of("gpt-4.1", aliases) == "o"
    assert alias_of("gpt-5", aliases) == "n"
    assert alias_of("claude", aliases) is None
    assert ModelRef("m", account="dashscope", thinking=True) in list(
        interpretations("gpt-4o", aliases=aliases, accounts=ACCOUNTS)
    )


@given(st.text(max_size=40))
def test_every_name_can_be_read_and_first_of_all_as_it_is(name: str) -> None:
    found = list(interpretations(name, aliases={}, accounts=ACCOUNTS))
    assert found[0] == ModelRef(name)
    assert len(set(found)) == len(found)
    assert all(wish.model or not name for wish in found)


def test_the_portal_has_one_model() -> None:
    assert at_portal("qwen3-coder-plus") == "coder-model"
    assert at_portal("gpt-4o") is None


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("anthropic/m", ModelRef("m")),
        ("anthropic/Qwen/Qwen3-8B", ModelRef("Qwen/Qwen3-8B")),
        ("anthropic/a:m", ModelRef("m", account="a")),
        ("anthropic/m-thinking", ModelRef("m", thinking=True)),
        ("anthropic/claude-x", ModelRef("m2")),
    ],
)
def test_anthropics_namespace_is_no_part_of_the_name(name: str, last: ModelRef) -> None:
    found = list(interpretations(name, aliases={"claude-*": "m2"}, accounts=("a",)))

    assert found[0] == ModelRef(name)
    assert last in found


def test_an_alias_in_the_namespace_is_the_operators() -> None:
    found = list(interpretations("anthropic/x", aliases={"anthropic/*": "m"}, accounts=()))

    assert found == [ModelRef("m")]


def test_no_old_name_leads_to_another_one_first() -> None:
    """Else the same name would mean different models by different ways."""
    for name, models in OLD_NAMES.items():
        assert name not in models
        assert models[0] not in OLD_NAMES


def test_aliases_that_a_list_shows() -> None:
    aliases = {"gpt-4o": "qwen3.8-max", "mine": "b:qwen-flash-search", "claude-*": "qwen3.8-max"}
    aliases |= {"lost": "nothing", "qwen-flash": "qwen3.8-max"}

    found = listed_aliases(aliases, {"qwen3.8-max": 1, "qwen-flash": 2}, accounts=["b"])

    assert found == {
        "gpt-4o": "qwen3.8-max",
        "mine": "qwen-flash",
        "qwen-max": "qwen3.8-max",
        "qwen-max-latest": "qwen3.8-max",
        "qwen-turbo": "qwen-flash",
        "qwen-turbo-latest": "qwen-flash",
    }
