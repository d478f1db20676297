"""Reads tools.json: which tools the operator offers, and how each is started. Pure.

The form of `mcpServers` is qwen-code's, so that entries can be copied from its settings.json.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

from qwen_wsgi.errors import SettingsError

#: Tools that are part of the proxy.
PYTHON: Final = "python"
FETCH: Final = "fetch"
BUILT_IN: Final = (PYTHON, FETCH)

_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_SERVERS: Final = 64
_MOST_WORDS: Final = 256
#: qwen-code's default is ten minutes; nothing may take longer than an hour.
_LONGEST_MS: Final = 3_600_000
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")

#: How a server is reached: exactly one of them.
_WAYS: Final = ("command", "httpUrl", "url")
_OF_COMMAND: Final = ("args", "env", "cwd", "read", "write", "network")
_OF_ALL: Final = ("trust", "timeout", "includeTools", "excludeTools", "description")
_KNOWN: Final = ("from", *_WAYS, *_OF_COMMAND, "headers", *_OF_ALL)
_OF_PYTHON: Final = ("command", "read", "network", "env", "trust", "timeout", "description")
_OF_FETCH: Final = ("trust", "timeout", "description")


@dataclass(frozen=True)
class Entry:
    """One server of tools.

    Attributes:
        command: the program of a server over stdio; "" where there is a URL, and for built-in ones.
        http_url: of a server over streamable HTTP.
        sse_url: of one over server-sent events.
        timeout_s: of a call; None is the setting's.
        include: the tools that are offered; None is all.
        read: folders that it may read, besides the system's.
        write: folders that it may read and change.
        network: it may use the network.
        trust: its tools run without an approval.
        trouble: why it cannot be offered; "" if it can.
    """

    label: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    http_url: str = ""
    sse_url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    network: bool = False
    trust: bool = False
    trouble: str = ""

    def offers(self, tool: str) -> bool:
        """Whether a tool of the server may be offered."""
        return (self.include is None or tool in self.include) and tool not in self.exclude


def parse(
    text: str,
    *,
    environ: Mapping[str, str],
    of_qwen_code: Mapping[str, Any] | str,
) -> tuple[Entry, ...]:
    """The entries of a tools.json.

    Args:
        environ: where `$NAME` and `${NAME}` in `env` and `headers` are looked up.
        of_qwen_code: `mcpServers` of qwen-code's settings.json, or why it cannot be read.

    Raises:
        SettingsError: it cannot be used; the text names the entry and the field.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise SettingsError('it must be an object, as in {"mcpServers": {}}')
    _only(document, ("mcpServers", *BUILT_IN), "it has")
    servers = document.get("mcpServers", {})
    if not isinstance(servers, dict):
        raise SettingsError("mcpServers must be an object of servers by their names")
    named = {**servers, **{label: document[label] for label in BUILT_IN if label in document}}
    if len(named) > _MOST_SERVERS:
        raise SettingsError(f"it names {len(named)} servers; the most are {_MOST_SERVERS}")
    return tuple(_entry(label, value, environ, of_qwen_code) for label, value in named.items())


def _entry(
    label: str, value: object, environ: Mapping[str, str], of_qwen_code: Mapping[str, Any] | str
) -> Entry:
    if not _LABEL.fullmatch(label):
        raise SettingsError(
            f"the name {label[:80]!r} must be of 1 to 64 letters, digits, - and _ (no other "
            "characters may be in the name of a tool)"
        )
    if not isinstance(value, dict):
        raise SettingsError(f"{label} must be an object")
    reader = _Reader(label, environ)
    if label in BUILT_IN:
        _only(value, _OF_PYTHON if label == PYTHON else _OF_FETCH, f"{label} has")
        return reader.read(value)
    _only(value, _KNOWN, f"{label} has")
    if "from" not in value:
        return reader.read_server(value)
    if value["from"] != "qwen-code":
        raise SettingsError(f'{label}.from must be "qwen-code", the only place that is known')
    if isinstance(of_qwen_code, str):
        return Entry(label, trouble=of_qwen_code)
    found = of_qwen_code.get(label)
    if not isinstance(found, dict):
        return Entry(label, trouble=f"qwen-code's settings.json has no mcpServers.{label}")
    # Who trusts a tool at his own terminal has not yet offered it to a whole network.
    theirs = {name: each for name, each in found.items() if name in _KNOWN and name != "trust"}
    if not theirs.get("command"):
        theirs.pop("env", None)  # qwen-code allows it beside a URL, and does nothing with it
    ours = {name: each for name, each in value.items() if name != "from"}
    try:
        return reader.read_server({**theirs, **ours})
    except SettingsError as error:
        return Entry(label, trouble=f"its entry in qwen-code's settings.json: {error}")


def _only(value: Mapping[str, object], known: tuple[str, ...], what: str) -> None:
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"
            raise SettingsError(f"{what} {name[:80]!r}, which is not known{meant}")


@dataclass(frozen=True)
class _Reader:
    """Reads the fields of one entry."""

    label: str
    environ: Mapping[str, str]

    def read_server(self, value: Mapping[str, Any]) -> Entry:
        ways = [name for name in _WAYS if value.get(name)]
        if len(ways) != 1:
            raise self._wrong(
                "must have exactly one of command (a program over stdio), httpUrl (streamable "
                "HTTP) and url (server-sent events)"
            )
        if ways != ["command"]:
            for name in _OF_COMMAND:
                if name in value:
                    hint = "; what the server is to be told goes into headers" * (name == "env")
                    raise self._wrong(f"has {name}, which only a command may have{hint}")
        elif value.get("headers"):
            raise self._wrong("has headers, which only an httpUrl or url may have")
        return self.read(value)

    def read(self, value: Mapping[str, Any]) -> Entry:
        entry = Entry(
            self.label,
            command=self._text(value, "command"),
            args=self._words(value, "args") or (),
            cwd=self._folder(value, "cwd"),
            http_url=self._url(value, "httpUrl"),
            sse_url=self._url(value, "url"),
            timeout_s=self._timeout(value),
            include=self._words(value, "includeTools"),
            exclude=self._words(value, "excludeTools") or (),
            read=self._folders(value, "read"),
            write=self._folders(value, "write"),
            network=self._flag(value, "network"),
            trust=self._flag(value, "trust"),
        )
        missing: list[str] = []
        env = self._texts(value, "env", missing)
        headers = self._texts(value, "headers", missing)
        trouble = ""
        if missing:
            trouble = (
                f"it uses the variables {', '.join(dict.fromkeys(missing))}, which the runner of "
                "tools does not have in its environment"
            )
        return replace(entry, env=env, headers=headers, trouble=trouble)

    def _wrong(self, what: str) -> SettingsError:
        return SettingsError(f"{self.label} {what}")

    def _text(self, value: Mapping[str, Any], name: str) -> str:
        found = value.get(name, "")
        if not isinstance(found, str) or "\0" in found:
            raise self._wrong(f"has a {name} that is no text")
        return found

    def _words(self, value: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
        found = value.get(name)
        if found is None:
            return None
        if (
            not isinstance(found, list)
            or len(found) > _MOST_WORDS
            or not all(isinstance(each, str) and "\0" not in each for each in found)
        ):
            raise self._wrong(f"has {name} that must be a list of texts, {_MOST_WORDS} at most")
        return tuple(found)

    def _texts(self, value: Mapping[str, Any], name: str, missing: list[str]) -> dict[str, str]:
        found = value.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict) or len(found) > _MOST_WORDS:
            raise self._wrong(f"has {name} that must be an object of texts")

        def known(match: re.Match[str]) -> str:
            variable = match[1] or match[2]
            if variable not in self.environ:
                missing.append(variable)
            return self.environ.get(variable, "")

        texts = {}
        for key, text in found.items():
            if not isinstance(text, str) or "\0" in key + text or "=" in key or not key:
                raise self._wrong(f"has a {name}.{key[:80]} that must be a text")
            texts[key] = _VARIABLE.sub(known, text)
        return texts

    def _flag(self, value: Mapping[str, Any], name: str) -> bool:
        found = value.get(name, False)
        if not isinstance(found, bool):
            raise self._wrong(f"has a {name} that must be true or false")
        return found

    def _folder(self, value: Mapping[str, Any], name: str) -> str:
        found = self._text(value, name)
        if found and not found.startswith("/"):
            raise self._wrong(f"has a {name} that must be a whole path, from / on")
        return found.rstrip("/") or found

    def _folders(self, value: Mapping[str, Any], name: str) -> tuple[str, ...]:
        found = self._words(value, name) or ()
        if not all(each.startswith("/") for each in found):
            raise self._wrong(f"has {name} that must be whole paths, from / on")
        return tuple(each.rstrip("/") or each for each in found)

    def _url(self, value: Mapping[str, Any], name: str) -> str:
        found = self._text(value, name)
        if not found:
            return ""
        try:
            parts = urlsplit(found)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise self._wrong(f"has {name} that must be a URL of http or https")
        if parts.username is not None or parts.password is not None:
            raise self._wrong(f"has a password in {name}, which logs may show; use headers")
        return found

    def _timeout(self, value: Mapping[str, Any]) -> float | None:
        found = value.get("timeout")
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._wrong("has a timeout that must be a number of milliseconds")
        if not 1 <= found <= _LONGEST_MS:
            raise self._wrong(f"has a timeout that must be 1 to {_LONGEST_MS} (milliseconds)")
        return found / 1000
