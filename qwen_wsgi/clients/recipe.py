"""The parts of a recipe, and how it is printed. Pure: no settings, no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

#: The dialects by their paths: `POST /v1/chat/completions`, `/v1/responses`, `/v1/messages`.
CHAT: Final = "chat"
RESPONSES: Final = "responses"
MESSAGES: Final = "messages"

#: The environment variable with the client key; no recipe contains the key itself.
KEY_VARIABLE: Final = "QWEN_PROXY_KEY"

#: The prompt of every recipe's test command.
PROMPT: Final = "Say hello in three languages."

# These forms need no escaping in a shell (in quotes), TOML, JSON, YAML, Python or JavaScript, so
# recipes are plain text templates.
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_URL: Final = re.compile(
    r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d+)?(/[A-Za-z0-9._~-]+)*"
)


@dataclass(frozen=True)
class Model:
    """A model, with what clients need to know about it.

    Attributes:
        name: as in `GET /v1/models`; see `is_model_name`.
        context: tokens of input and output together, None if unknown.
        max_output: most tokens of output, None if unknown.
        images: whether it takes images.
    """

    name: str
    context: int | None = None
    max_output: int | None = None
    images: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Target:
    """What a recipe connects to.

    Attributes:
        origin: the server without `/v1`, such as `http://127.0.0.1:8080`.
        model: the model to use.
        fast: a fast model for titles and summaries; may be the same.
    """

    origin: str
    model: Model
    fast: Model

    @property
    def base_url(self) -> str:
        """The base URL for OpenAI clients; Anthropic's add `/v1` themselves."""
        return f"{self.origin}/v1"


@dataclass(frozen=True)
class Snippet:
    """A piece to paste.

    Attributes:
        place: the file that it belongs in, or "your shell".
        language: of the text, as in Markdown's code fences.
        text: ends with a line feed.
    """

    place: str
    language: str
    text: str


@dataclass(frozen=True)
class Recipe:
    """Everything that one client needs.

    Attributes:
        snippets: in the order of use, the key first.
        command: one command to test it.
        notes: a sentence or two each.
    """

    snippets: tuple[Snippet, ...]
    command: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Client:
    """A program that can use this server.

    Attributes:
        name: for the command line.
        title: its official name.
        speaks: the dialect, one of `CHAT`, `RESPONSES`, `MESSAGES`.
        agent: whether it writes code, so that a coding model suits it.
        recipe: renders its setup.
    """

    name: str
    title: str
    speaks: str
    agent: bool
    recipe: Callable[[Target], Recipe]


def is_model_name(name: str) -> bool:
    """Whether a model's name needs no escaping in a recipe."""
    return _MODEL.fullmatch(name) is not None


def origin_of(url: str) -> str:
    """Normalize a server's address: without `/v1` and slashes at its end.

    Raises:
        ValueError: it is not an http(s) URL of plain characters.
    """
    bare = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not _URL.fullmatch(bare):
        raise ValueError(f"{url!r} is not an address like http://192.168.1.5:8080")
    return bare


def shell(text: str) -> Snippet:
    """A snippet for the shell or its profile."""
    return Snippet("your shell", "sh", text)


def key_in_shell(*more: str) -> Snippet:
    """A shell snippet that sets the key's variable, then runs the lines of `more`.

    The placeholder is a valid word: a server without client keys accepts any.
    """
    key = f"export {KEY_VARIABLE}=YOUR_CLIENT_KEY  # your client key"
    return shell("".join(line + "\n" for line in (key, *more)))


def as_text(client: Client, target: Target, recipe: Recipe) -> str:
    """Render for a terminal; snippets are not indented, so that they can be copied."""
    lines = [
        f"{client.title} speaks {client.speaks}",
        f"server {target.origin}, model {target.model} ({_limits(target.model)})",
    ]
    for snippet in recipe.snippets:
        lines += ["", f"--- {snippet.place}", "", snippet.text.rstrip("\n")]
    lines += ["", "--- try it", "", recipe.command]
    if recipe.notes:
        lines += ["", *(f"note: {note}" for note in recipe.notes)]
    return "\n".join(lines) + "\n"


def as_json(client: Client, target: Target, recipe: Recipe) -> dict[str, Any]:
    """Render as JSON: `{"name", "speaks", "url", "model", "context_length", "max_output_tokens",
    "key_variable", "snippets": [{"place", "language", "text"}], "command", "notes": […]}`."""
    return {
        "name": client.name,
        "speaks": client.speaks,
        "url": target.origin,
        "model": target.model.name,
        "context_length": target.model.context,
        "max_output_tokens": target.model.max_output,
        "key_variable": KEY_VARIABLE,
        "snippets": [vars(snippet) for snippet in recipe.snippets],
        "command": recipe.command,
        "notes": list(recipe.notes),
    }


def _limits(model: Model) -> str:
    parts = []
    if model.context:
        parts.append(f"context {model.context}")
    if model.max_output:
        parts.append(f"output {model.max_output}")
    return f"{', '.join(parts)} tokens" if parts else "limits unknown"
