"""The recipes as README and docs/clients.md show them, and a reader of the YAML that is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_wsgi.clients.known import CLIENTS
from qwen_wsgi.clients.recipe import Model, Recipe, Target

ROOT = Path(__file__).resolve().parents[2]

#: What stands in the documents for agents.
SHOWN = Target(
    origin="http://127.0.0.1:8080",
    model=Model("qwen3-coder-plus", context=1_000_000, max_output=65_536),
    fast=Model("qwen3-coder-flash", context=1_000_000, max_output=65_536),
)
#: As different from it as can be: nothing is known of the model, and the server is elsewhere.
BARE = Target(
    origin="https://[fd00::5]:8443/qwen",
    model=Model("Vendor/some.model-7b:free"),
    fast=Model("Vendor/some.model-7b:free"),
)


#: For those that do not write code.
SHOWN_CHAT = Target(
    SHOWN.origin,
    model=Model("qwen3.7-plus", context=1_000_000, max_output=65_536, images=True),
    fast=Model("qwen3.8-flash", context=1_000_000, max_output=131_072, images=True),
)


def shown(name: str) -> Target:
    """What the documents show a client with."""
    return SHOWN if CLIENTS[name].agent else SHOWN_CHAT


def recipe(name: str, target: Target | None = None) -> Recipe:
    """A client's recipe, by default as the documents show it."""
    return CLIENTS[name].recipe(target or shown(name))


def text_of(recipe: Recipe, language: str) -> str:
    """The one piece in a language."""
    (text,) = [piece.text for piece in recipe.snippets if piece.language == language]
    return text


def markdown(recipe: Recipe) -> str:
    """A recipe as the documents show it."""
    parts = []
    for piece in recipe.snippets:
        place = "" if piece.place == "your shell" else f"`{piece.place}`:\n\n"
        parts.append(f"{place}```{piece.language}\n{piece.text}```\n")
    return "\n".join(parts)


def read_yaml(text: str) -> Any:
    """The small part of YAML that recipes use: nested maps, lists of maps, scalars, `[a, b]`.

    Raises:
        ValueError: it is anything else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    value, rest = _block(lines, 0)
    if rest:
        raise ValueError(f"out of place: {rest[0]!r}")
    return value


def _block(lines: list[str], indent: int) -> tuple[Any, list[str]]:
    if lines and lines[0].startswith(" " * indent + "- "):
        items = []
        while lines and lines[0].startswith(" " * indent + "- "):
            lines = [" " * (indent + 2) + lines[0][indent + 2 :], *lines[1:]]
            item, lines = _block(lines, indent + 2)
            items.append(item)
        return items, lines
    found: dict[str, Any] = {}
    while lines and len(lines[0]) - len(lines[0].lstrip()) == indent:
        key, colon, value = lines[0].strip().partition(":")
        if not colon or not key.replace("-", "").isalnum() or key in found:
            raise ValueError(f"no `key: value`: {lines[0]!r}")
        lines = lines[1:]
        if value:
            found[key] = _scalar(value)
        else:
            inner = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
            if inner <= indent:
                raise ValueError(f"{key!r} is empty")
            found[key], lines = _block(lines, inner)
    return found, lines


def _scalar(text: str) -> Any:
    if not text.startswith(" ") or text != text.rstrip():
        raise ValueError(f"badly spaced: {text!r}")
    text = text[1:]
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(" " + part.strip()) for part in text[1:-1].split(",")]
    if text.startswith('"'):
        if not text.endswith('"') or '"' in text[1:-1] or "\\" in text:
            raise ValueError(f"badly quoted: {text!r}")
        return text[1:-1]
    # Plain: nothing that YAML reads as something else.
    if any(mark in text for mark in (": ", " #", "{", "}", "[", "]", '"', "'", "`")):
        raise ValueError(f"needs quotes: {text!r}")
    return int(text) if text.isdigit() else text
