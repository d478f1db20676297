"""What is known of how a model takes a request: by name, and nothing of names that are new."""

from __future__ import annotations

import re

import pytest
from hypothesis import find, settings
from hypothesis import strategies as st

from qwen_wsgi.upstream.routing import model_profiles
from qwen_wsgi.upstream.routing.model_profiles import ModelProfile, profile_of

pytestmark = pytest.mark.once

CHAT_MODELS = [name for name in model_profiles.FACTS if not name.startswith("text-embedding")]


@pytest.mark.parametrize("model", CHAT_MODELS)
def test_of_every_model_with_known_limits_the_traits_are_known(model: str) -> None:
    assert profile_of(model) is not None


@pytest.mark.parametrize(
    "model",
    [
        "",
        "qwen",
        "qwen4-max",
        "qwen3.9-plus",
        "qwen3.8-ultra",
        "qwen3.5-ocr",
        "qwen-plus-2025-01-25",
        "qwen3-max-2025-09-23",
        "text-embedding-v4",
        "glm-6",
        "glm-5.10",
        "deepseek-v5",
        "kimi-k4",
        "gpt-5",
        # Other vendors' own servers behind the gateway.
        "kimi/kimi-k3",
        "siliconflow/deepseek-v3.2",
        "MiniMax/MiniMax-M2.5",
        "qwen3.7-plus\n",
    ],
)
def test_of_other_names_nothing_is(model: str) -> None:
    assert profile_of(model) is None


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("qwen3.8-max-0902", "qwen3.8-max"),
        ("qwen3.8-max-preview", "qwen3.8-max"),
        ("qwen3.7-plus-2026-05-26", "qwen3.7-plus"),
        ("qwen3.7-max-2026-06-08", "qwen3.7-max"),
        ("Qwen3.7-Max", "qwen3.7-max"),
        ("qwen-plus-latest", "qwen-plus"),
        ("qwen3-max-2026-01-23", "qwen3-max"),
        ("qwen3-coder-plus-2025-07-22", "qwen3-coder-plus"),
        ("minimax-m2.5", "MiniMax-M2.5"),
        ("qwen-max-2025-01-25", "qwen-max"),
    ],
)
def test_a_dated_name_is_like_the_plain_one(model: str, like: str) -> None:
    assert profile_of(model) is profile_of(like)


@pytest.mark.parametrize(
    ("model", "thinks", "switch"),
    [
        ("qwen3.8-max", True, True),
        ("qwen3.8-2.4t-a95b", True, False),
        ("qwen3.7-plus", True, True),
        ("qwen3.7-max-preview", True, False),
        ("qwen3.7-max-2026-05-17", True, False),
        ("qwen3.5-397b-a17b", True, True),
        ("qwen3-max", False, True),
        ("qwen-plus", False, True),
        ("qwen-plus-2025-04-28", False, True),
        ("qwen-plus-2025-07-14", False, True),
        ("qwen-plus-character", False, False),
        ("qwen-max", False, False),
        ("qwen3-32b", True, True),
        ("qwen3-0.6b", True, True),
        ("qwen3-235b-a22b", True, True),
        ("qwen3-235b-a22b-instruct-2507", False, False),
        ("qwen3-235b-a22b-thinking-2507", True, False),
        ("qwen3-next-80b-a3b-thinking", True, False),
        ("qwen3-vl-plus", False, True),
        ("qwen3-vl-235b-a22b-thinking", True, False),
        ("qwen3-coder-480b-a35b-instruct", False, False),
        ("qwen2.5-72b-instruct", False, False),
        ("qwq-plus", True, False),
        ("coder-model", None, True),
        ("deepseek-v4-pro", True, True),
        ("deepseek-v3.2", False, True),
        ("deepseek-r1", True, False),
        ("glm-5.3", True, False),
        ("glm-5.1", True, True),
        ("kimi-k2.5", False, True),
        ("kimi-k2.7-code", True, False),
    ],
)
def test_who_thinks_and_who_can_be_told(model: str, thinks: bool | None, switch: bool) -> None:
    known = profile_of(model)

    assert known is not None
    assert (known.thinks, known.switch) == (thinks, switch)


def test_every_row_makes_sense() -> None:
    for pattern, known in model_profiles._TRAITS:
        assert re.compile(pattern)
        assert isinstance(known, ModelProfile)
        # What a model that never thinks has no use for.
        never = known.thinks is False and not known.switch
        assert not (never and (known.budget or known.efforts))
        assert set(known.efforts.values()) <= set(known.efforts) | {"none"}
        for level in ("low", "medium", "high", "xhigh", "max"):
            assert not known.efforts or level in known.efforts
        # To send what was sent changes nothing more.
        assert all(known.efforts[level] == level for level in known.efforts.values())
        # A level that does not think is one only for a model that can do without.
        assert known.switch or known.efforts.get("none") != "none"


@pytest.mark.once
@pytest.mark.parametrize("index", range(len(model_profiles._TRAITS)))
def test_no_row_stands_behind_another_that_takes_all_its_names(index: int) -> None:
    patterns = [re.compile(pattern) for pattern, _ in model_profiles._TRAITS]

    def reaches(name: str) -> bool:
        return next(i for i, each in enumerate(patterns) if each.fullmatch(name)) == index

    assert find(
        st.from_regex(patterns[index], fullmatch=True), reaches, settings=settings(database=None)
    )


@pytest.mark.parametrize(
    ("model", "levels"),
    [
        ("qwen3.7-plus", ("low", "medium", "high")),
        ("deepseek-v4-pro", ("high", "max")),
        ("deepseek-v3.2", ("high",)),
        ("qwen3-coder-plus", ()),
        ("kimi-k2.7-code", ()),
        ("nobody-knows", ()),
    ],
)
def test_the_levels_that_make_a_difference(model: str, levels: tuple[str, ...]) -> None:
    assert model_profiles.effort_levels(model) == levels
