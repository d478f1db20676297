"""The reference of docs/: commands, endpoints, headers and codes of errors, made from the code.

    python install/reference.py          write docs/reference/ anew (`make reference`)
    python install/reference.py --check  say which pages are not as they would be written

Settings and metrics have pages of their own, which their tests hold to the code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
# Before the imports: what is written is that of this checkout, not of an installed package.
sys.path[:0] = [str(ROOT), str(ROOT / "install")]

# ruff: noqa: E402
import generated

import share
from qwen_wsgi.api.openapi import codes, document, headers
from qwen_wsgi.api.openapi.operations import Access
from qwen_wsgi.cli import main

DIRECTORY: Final = ROOT / "docs/reference"

_MADE: Final = "Made from the code by `make reference`; do not edit."


def index() -> str:
    """The first page."""
    return f"""# Reference

{_MADE}

- [Commands](commands.md): every command of `qwen-proxy`, with its options
- [Settings](../settings.md): every environment variable
- [Endpoints](endpoints.md): every URL of the server; `GET /docs` has the members, too
- [Headers](headers.md): what clients may send, and what answers have
- [Errors](errors.md): every `code` of an error
- [Metrics](../metrics.md#all-metrics): every metric of `GET /metrics`
"""


def commands() -> str:
    """The page of commands."""
    parts = [f"# Commands\n\n{_MADE}"]
    for command in share.commands(main._parser()):
        name = f"qwen-proxy {command.path}".strip()
        parts.append(f"## {name}\n\n{_sentence(command.help)}")
        rows = [
            (f"`{given.metavar}`{' (optional)' if given.optional else ''}", _value(given))
            for given in command.positionals
        ]
        for option in command.options:
            flags = ", ".join(f"`{flag}`" for flag in option.flags)
            shown = f" `{option.metavar}`" if option.metavar and option.metavar.isupper() else ""
            rows.append((flags + shown, _value(option)))
        parts.append(_table(("argument", "meaning"), rows))
        below = [(f"`{word}`", _cell(help)) for word, help in command.below.items()]
        parts.append(_table(("command", "what it does"), below))
        if command.epilog:
            parts.append(_cell(command.epilog))
    return _page(parts)


def _value(given: share.Option | share.Positional) -> str:
    values = ", ".join(f"`{value}`" for value in given.values)
    return _cell(given.help) + (f" ({values})" if values else "")


_ACCESS: Final[Mapping[Access, str]] = {
    Access.OPEN: "everybody",
    Access.KEY: "a client key",
    Access.ADMIN: "an admin's key",
    Access.METRICS: "this machine; keys with `metrics`",
}


def endpoints() -> str:
    """The page of endpoints."""
    parts = [
        f"# Endpoints\n\n{_MADE}",
        "Without client keys the server serves its own machine only, which then needs no key.",
    ]
    for tag in dict.fromkeys(each.tag for each in document.OPERATIONS):
        rows = [
            (f"`{each.method} {each.path}`", _cell(each.summary), _ACCESS[each.access])
            for each in document.OPERATIONS
            if each.tag == tag
        ]
        parts += [f"## {tag}", _table(("endpoint", "what it does", "who may ask"), rows)]
    return _page(parts)


def headers_page() -> str:
    """The page of headers."""
    read = [(f"`{name}`", _cell(meaning)) for name, meaning in headers.READ.items()]
    sent = [
        (f"`{name}`", _cell(header.meaning), "yes" if header.pages else "no")
        for name, header in headers.SENT.items()
    ]
    return _page(
        [
            f"# Headers\n\n{_MADE}",
            "## Of requests\n\nBesides those of HTTP itself.",
            _table(("header", "meaning"), read),
            "## Of answers\n\nWeb pages of other origins may read those with a yes, where CORS "
            "allows them to call at all.",
            _table(("header", "meaning", "for pages"), sent),
        ]
    )


def errors() -> str:
    """The page of codes."""
    parts = [
        f"# Errors\n\n{_MADE}",
        'Errors have OpenAI\'s form, `{"error": {"message", "type", "param", "code"}}`; below '
        "`/v1/messages`, and for clients that send `anthropic-version`, Anthropic's, which has no "
        "`code`. Where an upstream's own code means nothing that stands here, it is passed on; "
        "where it answered with no error object, the code is `upstream_http_` and its status.",
    ]
    for group, rows in {**codes.GROUPS, "Failures of connections": codes.BY_CAUSE}.items():
        told = [
            (f"`{name}`", ", ".join(map(str, code.statuses)) or "–", _cell(code.meaning))
            for name, code in rows.items()
        ]
        parts += [f"## {group}", _table(("code", "status", "meaning"), told)]
    parts.append("A code without a status stands in an event of a stream, or in a stored response.")
    return _page(parts)


# --- Markdown ------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; "" where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) if lines else ""


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(text: str) -> str:
    """A text for a cell of a table: in one line, and none of its marks taken for markup."""
    plain = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return plain.replace("*", "\\*")


def _sentence(text: str) -> str:
    text = _cell(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "index.md": index,
    "commands.md": commands,
    "endpoints.md": endpoints,
    "headers.md": headers_page,
    "errors.md": errors,
}


def texts() -> dict[str, str]:
    """All pages, by their names."""
    return {name: write() for name, write in PAGES.items()}


if __name__ == "__main__":
    generated.run(DIRECTORY, texts, again="make reference", usage=__doc__)
