"""The list of models in Codex's form: what Codex 0.171 was seen to read, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol.responses import catalogue

#: The members without which Codex 0.171 cannot read the list (found by leaving each out).
NEEDED = {
    *("slug", "display_name", "supported_reasoning_levels", "shell_type", "visibility"),
    *("supported_in_api", "priority", "truncation_policy", "support_verbosity"),
    *("experimental_supported_tools", "base_instructions"),
}
#: Those that it takes as well.
TAKEN = {
    *("description", "default_reasoning_level", "context_window", "max_context_window"),
    *("input_modalities", "supports_parallel_tool_calls", "apply_patch_tool_type"),
}


def model(entry: dict[str, Any], *levels: str) -> dict[str, Any]:
    (found,) = catalogue.models([entry], lambda id: levels)
    return found


def test_an_entry_has_the_limits_and_the_levels() -> None:
    found = model(
        {"id": "q", "name": "Q", "context_length": 9, "input_modalities": ["text", "image"]},
        *("none", "low", "medium", "high", "xhigh"),
    )

    assert found.keys() == NEEDED | TAKEN
    assert (found["slug"], found["display_name"], found["priority"]) == ("q", "Q", 1)
    assert (found["context_window"], found["max_context_window"]) == (9, 9)
    assert found["input_modalities"] == ["text", "image"]
    assert [each["effort"] for each in found["supported_reasoning_levels"]] == [
        "low",
        "medium",
        "high",
    ]
    assert all(each["description"] for each in found["supported_reasoning_levels"])
    assert found["default_reasoning_level"] == "medium"
    assert found["truncation_policy"] == {"mode": "tokens", "limit": 10_000}
    assert found["apply_patch_tool_type"] == "freeform"
    assert "*** Begin Patch" in found["base_instructions"]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "q"},
        {"id": "q", "name": 5, "context_length": "x", "input_modalities": ["video", "smell", 7]},
        {"id": "q", "name": "", "context_length": True, "input_modalities": "text"},
    ],
)
def test_what_is_not_known_is_left_out(entry: dict[str, Any]) -> None:
    """One value that Codex cannot read costs it the whole list."""
    found = model(entry)

    assert found.keys() == (NEEDED | TAKEN) - {
        "context_window",
        "max_context_window",
        "default_reasoning_level",
    }
    assert found["display_name"] == "q"
    assert found["input_modalities"] == ["text"]
    assert found["supported_reasoning_levels"] == []


def test_the_highest_level_is_the_default_where_there_is_no_medium() -> None:
    assert model({"id": "q"}, "high", "max")["default_reasoning_level"] == "high"
