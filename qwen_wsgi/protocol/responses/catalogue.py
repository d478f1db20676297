"""Renders the list of models as Codex reads it.

Codex 0.171 requests `GET /v1/models?client_version=…` where its provider has `model_catalog_url`.
Without an entry for the model it warns, guesses the limits and sends no `reasoning`. An entry must
have every member of `_FIXED` and `model`, and one value that Codex does not know makes the whole
list unreadable: so only values are used that it was seen to read (measured 2026-11-28).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.protocol import json_access

#: Reasoning levels that Codex was seen to read, with the words of its menu.
_LEVELS: Final[Mapping[str, str]] = {
    "low": "Thinks little, answers soon",
    "medium": "Thinks as long as most tasks need",
    "high": "Thinks long, for hard tasks",
}
_MODALITIES: Final = ("text", "image")

#: The system prompt. An entry must have one, and Codex sends it instead of its own.
INSTRUCTIONS: Final = """\
You are a coding agent that runs in Codex, in a terminal on the user's computer. You share a \
working directory with the user.

How to work
- Carry on until the task is done: find what matters, make the change, check it. Do not end your \
turn with a plan that you could carry out yourself.
- Look before you change. Read the files in question; search with `rg`, or with `grep` where it is \
missing. Never guess what is in a file.
- If AGENTS.md files apply to a file that you touch, follow them; a deeper one has precedence.
- Correct the cause and not the symptom, in the style of the code around. Change nothing that the \
task does not need.
- The working tree may have changes of the user. Never revert or overwrite what is not yours, and \
never use `git reset --hard` or the like unless the user requests it.
- Run the tests or the program where you can. Say honestly what you could not check.

Tools
- Edit files with `apply_patch`. Its input is one patch, without a fence and without JSON:
*** Begin Patch
*** Update File: path/to/file.py
@@ def function():
 a line that stays
-a line to remove
+a line to add
*** End Patch
`*** Add File: path` (each line with +) and `*** Delete File: path` work, too. Paths are relative.
- Several independent calls can be made at once.
- A command that fails tells why: read it before you try again.

Answers
- Be brief and plain. Name files by path, with the line where it helps: `src/app.py:42`.
- When the work is done, say what you changed and why, and what is left to do.
"""

#: What is the same for all models.
_FIXED: Final[Mapping[str, Any]] = {
    "shell_type": "shell_command",
    "visibility": "list",
    "supported_in_api": True,
    # Of a tool's output Codex sends so much.
    "truncation_policy": {"mode": "tokens", "limit": 10_000},
    "supports_parallel_tool_calls": True,
    "support_verbosity": False,
    "apply_patch_tool_type": "freeform",
    "experimental_supported_tools": [],
    "base_instructions": INSTRUCTIONS,
}


def models(
    entries: Iterable[Mapping[str, Any]], levels_of: Callable[[str], Sequence[str]]
) -> list[dict[str, Any]]:
    """Render OpenAI's model objects as Codex's, in their order.

    Args:
        levels_of: the reasoning levels that a model takes, by its id.
    """
    return [
        _model(entry, number, levels_of(entry["id"])) for number, entry in enumerate(entries, 1)
    ]


def _model(entry: Mapping[str, Any], number: int, taken: Sequence[str]) -> dict[str, Any]:
    id = entry["id"]
    levels = [level for level in _LEVELS if level in taken]
    inputs = json_access.items(entry.get("input_modalities"))
    model: dict[str, Any] = {
        "slug": id,
        "display_name": json_access.text(entry.get("name")) or id,
        "description": json_access.text(entry.get("description")) or f"{id} by qwen-proxy",
        "supported_reasoning_levels": [
            {"effort": level, "description": _LEVELS[level]} for level in levels
        ],
        "priority": number,
        "input_modalities": [each for each in _MODALITIES if each in inputs] or ["text"],
        **_FIXED,
    }
    if levels:
        model["default_reasoning_level"] = "medium" if "medium" in levels else levels[-1]
    if (context := json_access.integer(entry.get("context_length"))) is not None:
        model |= {"context_window": context, "max_context_window": context}
    return model
