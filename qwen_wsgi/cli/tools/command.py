"""`qwen-proxy tools list | call SERVER.TOOL JSON | check`: the tools that the server runs.

Asks the runner that is there, as a worker does; without one it starts one for this command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TextIO

from qwen_wsgi import text
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool
from qwen_wsgi.tools.runner_client import RunnerClient, asking

_WIDEST: Final = 70
#: Of a call that has no time of its own: the entry's time and the setting's are below it.
_LONGEST_S: Final = 3600.0


def run(
    settings: Settings,
    action: str,
    tool: str | None,
    arguments: str | None,
    *,
    json_output: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """Run the command; 0 if all is well, 1 if a tool failed or a server is in trouble.

    Raises:
        SettingsError: the words do not fit together, or tools.json cannot be used.
    """
    if (action == "call") != (tool is not None):
        raise SettingsError(
            "`tools call` wants a tool and its arguments, as in: tools call time.now '{}'; the "
            "others want none"
        )
    given = _arguments(arguments)
    try:
        with asking(settings, SystemClock()) as client:
            if tool is not None:
                return _call(client, tool, given, json_output, out, err)
            if action == "check":
                return _check(client, json_output, out)
            return _list(client, json_output, out)
    except RunnerUnavailable as error:
        print(f"qwen-proxy: {error.reason}", file=err)
        return 1


def _arguments(raw: str | None) -> dict[str, Any]:
    try:
        found = json.loads(raw or "{}")
    except ValueError as error:
        raise SettingsError(f"the arguments of the tool are not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError('the arguments of the tool must be an object, as in \'{"city": "x"}\'')
    return found


def _list(client: RunnerClient, json_output: bool, out: TextIO) -> int:
    tools, troubles = client.offered(), client.troubles()
    if json_output:
        data = [
            {
                "server": each.server,
                "name": each.name,
                "trust": each.trust,
                "description": each.description,
                "schema": each.schema,
            }
            for each in tools
        ]
        print(json.dumps({"data": data, "troubles": troubles}, indent=2), file=out)
        return 0
    rows = [
        (f"{each.server}.{each.name}", "yes" if each.trust else "no", _short(each.description))
        for each in tools
    ]
    print(text.table([("TOOL", "TRUST", "WHAT IT DOES"), *rows]) if rows else "No tools.", file=out)
    for label, why in troubles.items():
        print(f"{label}: {_printable(why)}", file=out)
    return 0


def _check(client: RunnerClient, json_output: bool, out: TextIO) -> int:
    checked = client.check()
    if json_output:
        print(json.dumps(_checked(checked), indent=2), file=out)
    else:
        for label, why in checked.items():
            print(f"{label}: {_printable(why) or 'ok'}", file=out)
    return 1 if any(checked.values()) else 0


def _checked(checked: Mapping[str, str]) -> dict[str, Any]:
    return {label: {"ok": not why, "reason": why or None} for label, why in checked.items()}


def _call(
    client: RunnerClient,
    tool: str,
    arguments: Mapping[str, Any],
    json_output: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    found = _found(client, tool)
    result = client.call(found, arguments, seconds=_LONGEST_S)
    if json_output:
        shown = {
            "text": result.text,
            "is_error": result.is_error,
            "images": [
                {"media_type": each.media_type, "bytes": len(each.data)} for each in result.images
            ],
            "structured": result.structured,
        }
        print(json.dumps(shown, indent=2), file=out)
    else:
        print("\n".join(map(_printable, result.text.splitlines())), file=out)
        for each in result.images:
            print(f"[a picture: {each.media_type}, {len(each.data)} bytes]", file=err)
    return int(result.is_error)


def _found(client: RunnerClient, tool: str) -> ServerTool:
    """The tool of a name `SERVER.TOOL`.

    Raises:
        SettingsError: there is none.
    """
    tools = client.offered()
    for each in tools:
        if f"{each.server}.{each.name}" == tool:
            return each
    if why := client.troubles().get(tool.partition(".")[0]):
        raise SettingsError(f"{tool} cannot be called: {why}")
    known = ", ".join(f"{each.server}.{each.name}" for each in tools[:20]) or "none"
    raise SettingsError(f"there is no tool {tool!r}; there are: {known}")


def _short(description: str) -> str:
    line = _printable(" ".join(description.split()))
    return line if len(line) <= _WIDEST else line[: _WIDEST - 1] + "…"


def _printable(line: str) -> str:
    """A line of somebody else's text, without what would command the terminal."""
    return "".join(each if each.isprintable() or each == "\t" else "?" for each in line)
