"""How each client is started with this server, and without a change to its own files. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.clients import agents
from qwen_wsgi.clients.recipe import KEY_VARIABLE, Recipe, Target


@dataclass(frozen=True)
class Launch:
    """What a client is started with.

    Attributes:
        program: the command.
        arguments: go before the user's own. Everybody on the machine can see them: no key is there.
        environment: variables to set.
        keys: variables that get the client key.
        unset: variables that would lead it elsewhere.
        files: for variables, files to make for as long as it runs: name and content.
    """

    program: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = (KEY_VARIABLE,)
    unset: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def codex(target: Target, machine: Mapping[str, Any]) -> Launch:
    """Codex: each line of its file as an option."""
    options: list[str] = []
    table = ""
    for line in _text(agents.codex(target), "toml").splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif line:
            name, _, value = line.partition(" = ")
            options += ["-c", f"{table}{name}={value}"]
    return Launch("codex", tuple(options))


def claude_code(target: Target, machine: Mapping[str, Any]) -> Launch:
    """Claude Code: environment variables only."""
    return Launch(
        "claude",
        environment=agents.claude_code_variables(target),
        keys=("ANTHROPIC_AUTH_TOKEN",),
        unset=("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"),
    )


def opencode(target: Target, machine: Mapping[str, Any]) -> Launch:
    """opencode: its configuration in a variable, which wins over its files."""
    text = _text(agents.opencode(target), "json")
    return Launch("opencode", environment={"OPENCODE_CONFIG_CONTENT": text})


def qwen_code(target: Target, machine: Mapping[str, Any]) -> Launch:
    """qwen-code: as settings of the system, which win over the user's.

    The user's own list of models may have this model's name, and would lead elsewhere.
    """
    ours = json.loads(_text(agents.qwen_code(target), "json"))
    merged = {**machine, **{name: _merged(machine.get(name), ours[name]) for name in ours}}
    # Lists of models replace one another, as in qwen-code itself.
    merged["modelProviders"] = ours["modelProviders"]
    return Launch(
        "qwen",
        files={"QWEN_CODE_SYSTEM_SETTINGS_PATH": ("settings.json", json.dumps(merged, indent=2))},
        unset=("OPENAI_BASE_URL", "OPENAI_MODEL", "QWEN_MODEL"),
    )


def aider(target: Target, machine: Mapping[str, Any]) -> Launch:
    """aider: each of its options is a variable, too."""
    recipe = agents.aider(target)
    # Of the model's limits, where they are known.
    facts = [piece.text for piece in recipe.snippets if piece.language == "json"]
    return Launch(
        "aider",
        environment={
            "AIDER_MODEL": f"openai/{target.model}",
            "AIDER_WEAK_MODEL": f"openai/{target.fast}",
            "AIDER_OPENAI_API_BASE": target.base_url,
        },
        keys=("OPENAI_API_KEY",),
        files={"AIDER_MODEL_METADATA_FILE": ("metadata.json", facts[0])} if facts else {},
    )


#: By the client's name. The second argument is the machine's own settings of qwen-code.
LAUNCHES: Final[Mapping[str, Callable[[Target, Mapping[str, Any]], Launch]]] = {
    "codex": codex,
    "claude-code": claude_code,
    "opencode": opencode,
    "qwen-code": qwen_code,
    "aider": aider,
}


def _text(recipe: Recipe, language: str) -> str:
    """The one piece of a recipe in a language."""
    (text,) = [piece.text for piece in recipe.snippets if piece.language == language]
    return text


def _merged(given: Any, ours: Any) -> Any:
    """Ours over what is given, member by member."""
    if not (isinstance(given, dict) and isinstance(ours, dict)):
        return ours
    return {**given, **{name: _merged(given.get(name), ours[name]) for name in ours}}
