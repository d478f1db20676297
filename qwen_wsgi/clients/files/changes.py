"""What is written into the files of each client: its recipe, as changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.clients import agents
from qwen_wsgi.clients.files import json_text, toml_text, yaml_text
from qwen_wsgi.clients.files.texts import Applied, TakenBack
from qwen_wsgi.clients.recipe import KEY_VARIABLE, Recipe, Target
from qwen_wsgi.errors import SettingsError

#: A key that needs no escaping in JSON, TOML and YAML, between double quotes.
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9._~+/=:@!*-]+")

_CODEX_KEYS: Final = ("model", "model_provider", "model_context_window")
_CODEX_TABLE: Final = "model_providers.qwen"


#: Of qwen-code's own files the server makes accounts.
_NOT_QWEN_CODE: Final = (
    "qwen-code's files are left alone: a server on this machine reads its accounts from them, and "
    "would find itself. `qwen-proxy run qwen-code` starts it with this server, and "
    "`qwen-proxy clients qwen-code` shows a set-up for one project"
)


@dataclass(frozen=True)
class FileChange:
    """A change of one file.

    Attributes:
        kind: of the text: json, toml or yaml.
        apply: makes the change in a text; "" stands for a file that is not there.
    """

    path: Path
    kind: str
    apply: Callable[[str], Applied]


@dataclass(frozen=True)
class SetUp:
    """How a client is set up for good.

    Attributes:
        files: in the order in which they are written.
        variable: of the environment, which gets the client key; "" if none is needed.
        hidden_by_us: a file that the client would not read any more; it must not be there.
        notes: a sentence or two each.
    """

    files: tuple[FileChange, ...]
    variable: str = KEY_VARIABLE
    hidden_by_us: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a client's files are.

    Attributes:
        environ: of the user, who may have moved them.
    """

    home: Path
    environ: Mapping[str, str]

    def at(self, variable: str, default: str) -> Path:
        """The directory that a variable names, else one of the home directory."""
        given = self.environ.get(variable, "").strip()
        return Path(given) if given.startswith("/") else self.home / default


def is_plain_key(key: str) -> bool:
    """Whether a client key can be written into each of the files."""
    return _PLAIN_KEY.fullmatch(key) is not None


def codex(target: Target, place: Place, key: str) -> SetUp:
    """Codex: two or three keys, and a provider."""
    top, _, table = _text(agents.codex(target), "toml").partition(f"[{_CODEX_TABLE}]\n")
    lines = table.splitlines()
    if key:
        lines = [line for line in lines if not line.startswith("env_key")]
        lines.append(f'experimental_bearer_token = "{key}"')

    def apply(text: str) -> Applied:
        return toml_text.apply(text, top.split("\n\n")[0].splitlines(), _CODEX_TABLE, lines)

    path = place.at("CODEX_HOME", ".codex") / "config.toml"
    return SetUp((FileChange(path, "toml", apply),), "" if key else KEY_VARIABLE)


def claude_code(target: Target, place: Place, key: str) -> SetUp:
    """Claude Code: its variables in its settings."""
    variables = agents.claude_code_variables(target)
    if key:
        variables["ANTHROPIC_AUTH_TOKEN"] = key
    path = place.at("CLAUDE_CONFIG_DIR", ".claude") / "settings.json"
    notes = ("An ANTHROPIC_API_KEY in the environment would be sent as well: unset it.",)
    return SetUp(
        (_json(path, {"env": variables}),), "" if key else "ANTHROPIC_AUTH_TOKEN", notes=notes
    )


def opencode(target: Target, place: Place, key: str) -> SetUp:
    """opencode: a provider, in that of its files that is there."""
    values = json.loads(_text(agents.opencode(target), "json"))
    if key:
        values["provider"]["qwen"]["options"]["apiKey"] = key
    directory = place.at("XDG_CONFIG_HOME", ".config") / "opencode"
    # Of both the later one wins.
    path = directory / "opencode.jsonc"
    path = path if path.exists() else directory / "opencode.json"
    return SetUp((_json(path, values),), "" if key else KEY_VARIABLE)


def aider(target: Target, place: Place, key: str) -> SetUp:
    """aider: three keys, and what it should know of the models."""
    recipe = agents.aider(target)
    lines = _text(recipe, "yaml").splitlines()
    if key:
        lines.append(f'openai-api-key: "{key}"')
    values = [(line.partition(":")[0], [line]) for line in lines]

    def apply(text: str) -> Applied:
        return yaml_text.apply_keys(text, values)

    files = [FileChange(place.home / ".aider.conf.yml", "yaml", apply)]
    for piece in recipe.snippets:
        if piece.language == "json":
            path = place.home / ".aider.model.metadata.json"
            files.append(_json(path, json.loads(piece.text)))
    return SetUp(tuple(files), "" if key else "OPENAI_API_KEY")


def continue_(target: Target, place: Place, key: str) -> SetUp:
    """Continue: one more model, at the head of its list."""
    head, _, models = _text(agents.continue_(target), "yaml").partition("models:\n")
    if key:
        models = models.replace(f"${{{{ secrets.{KEY_VARIABLE} }}}}", key)
    item = [line.removeprefix("  ") for line in models.splitlines()]
    around = [(line.partition(":")[0], line) for line in head.splitlines()]

    def apply(text: str) -> Applied:
        return yaml_text.apply_item(text, "models", item, name=target.model.name, around=around)

    directory = place.at("CONTINUE_GLOBAL_DIR", ".continue")
    path, older = directory / "config.yaml", directory / "config.json"
    return SetUp(
        (FileChange(path, "yaml", apply),),
        "" if key else KEY_VARIABLE,
        hidden_by_us=None if path.exists() else older,
        notes=()
        if key
        else (f"In an editor the key belongs into {directory}/.env: a line {KEY_VARIABLE}=…",),
    )


Maker = Callable[[Target, Place, str], SetUp]

#: By the client's name. The last argument is the client key, for a file that shall hold it.
SET_UPS: Final[Mapping[str, Maker]] = {
    "codex": codex,
    "claude-code": claude_code,
    "opencode": opencode,
    "aider": aider,
    "continue": continue_,
}


def set_up_of(client: str) -> Maker:
    """What makes a client's set-up.

    Raises:
        SettingsError: it is not one that files are written for.
    """
    if client == "qwen-code":
        raise SettingsError(_NOT_QWEN_CODE)
    if client not in SET_UPS:
        raise SettingsError(
            f"{client} has no file that could be written, only {', '.join(SET_UPS)} have; "
            f"`qwen-proxy clients {client}` shows its set-up"
        )
    return SET_UPS[client]


def take_back(kind: str, text: str, note: Any) -> TakenBack:
    """Undo a change of a text.

    Raises:
        Refused: the text cannot be read, or it cannot be told what is ours.
    """
    if kind == "json":
        return json_text.take_back(text, note)
    if kind == "toml":
        return toml_text.take_back(text, _CODEX_KEYS, _CODEX_TABLE)
    return yaml_text.take_back(text, note)


def _json(path: Path, values: Mapping[str, Any]) -> FileChange:
    return FileChange(path, "json", lambda text: json_text.apply(text, values))


def _text(recipe: Recipe, language: str) -> str:
    """The one piece of a recipe in a language."""
    (text,) = [piece.text for piece in recipe.snippets if piece.language == language]
    return text
