"""The environment file: its notation, and the layers of an environment that it is one of.

The server reads the file that QWEN_PROXY_ENV_FILE names at its start and again at each reload,
which systemd's `EnvironmentFile=` does not. The notation is the same (systemd.exec(5)), with the
reading of comments that systemd has since version 254: a comment ends with its line, also after a
backslash.

What the file sets lies over what the process was given, and the options of the command line lie
over both. `layered` notes what is beneath, within the environment itself: so a reload can take a
line back that is not in the file any more, in whatever process, also after an `exec`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from qwen_wsgi.errors import SettingsError

#: The variable that names the file.
VARIABLE: Final = "QWEN_PROXY_ENV_FILE"

#: What the command line sets, as a JSON object of variables.
_OPTIONS: Final = "_QWEN_PROXY_OPTIONS"
#: What lies beneath file and options: a JSON object of variables, null for one that was not set.
_BENEATH: Final = "_QWEN_PROXY_BENEATH"

#: The file cannot set these: they say where it is and what was beneath it.
_RESERVED: Final = frozenset({VARIABLE, _OPTIONS, _BENEATH})

#: Where a value comes from, besides the path of the file.
DEFAULT: Final = "default"
ENVIRONMENT: Final = "environment"
COMMAND_LINE: Final = "command line"

_MAX_BYTES: Final = 1024 * 1024

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_LINE: Final = re.compile(r"[^\n\r]*[\n\r]?")
#: A name may begin with anything; without `=` it ends with its line.
_KEY: Final = re.compile(r"[^\n\r][^\n\r=]*")
_BEFORE_VALUE: Final = re.compile(r"[ \t]*")
_SINGLE: Final = re.compile(r"'([^']*)'?")
_DOUBLE: Final = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?\Z)', re.DOTALL)
#: Text without quotes, to the end of its line; blanks at its end count only after a backslash.
_PLAIN: Final = re.compile(r"((?:[ \t]*(?:[^\\ \t\n\r]|\\.))*(?:[ \t]*\\\Z)?)[ \t]*", re.DOTALL)


class Parsed(NamedTuple):
    """What a file says.

    Attributes:
        values: by names.
        ignored: the numbers of the lines that begin something which sets nothing.
    """

    values: dict[str, str]
    ignored: tuple[int, ...]


def parse(text: str) -> Parsed:
    """Parse the assignments; what is none is ignored, as systemd does. The last of a name wins."""
    values: dict[str, str] = {}
    ignored: list[int] = []
    line = 1
    counted = at = 0
    while (at := _end(_BLANK, text, at)) < len(text):
        if text[at] in "#;":
            at = _end(_LINE, text, at)
            continue
        line, counted = line + text.count("\n", counted, at), at
        key_end = _end(_KEY, text, at)
        name = text[at:key_end].rstrip(" \t")
        if text[key_end : key_end + 1] != "=":
            at = key_end
            ignored.append(line)
            continue
        value, at = _value(text, key_end + 1)
        if _NAME.fullmatch(name):
            values[name] = value
        else:
            ignored.append(line)
    return Parsed(values, tuple(ignored))


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins here, and where it ends: quoted parts, and then perhaps a plain one."""
    parts = []
    while True:
        at = _end(_BEFORE_VALUE, text, at)
        if found := _SINGLE.match(text, at):
            parts.append(found[1])
        elif found := _DOUBLE.match(text, at):
            parts.append(re.sub(r'\\(\n|["\\`$])', _escaped, found[1]))
        else:
            break
        at = found.end()
    plain = _PLAIN.match(text, at)
    assert plain is not None, "it matches nothing, too"
    parts.append(re.sub(r"\\(.|\Z)", _escaped, plain[1], flags=re.DOTALL))
    return "".join(parts), plain.end()


def _escaped(found: re.Match[str]) -> str:
    """The character after a backslash; of a line's end nothing is left."""
    return "" if found[1] in "\n\r" else found[1]


def read(path: str) -> Parsed | None:
    """Read and parse a file; None if there is none.

    Raises:
        SettingsError: it cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = f". {read_remedy(path)}" if isinstance(error, PermissionError) else ""
        raise SettingsError(
            f"{VARIABLE}={path} cannot be read ({error.strerror}){remedy}"
        ) from None
    if len(data) > _MAX_BYTES:
        raise SettingsError(f"{VARIABLE}={path} is larger than {_MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{VARIABLE}={path}, line {line}: this is not UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SettingsError(f"{VARIABLE}={path}, line {line}: there is a zero byte")
    return parse(text)


def read_remedy(path: str) -> str:
    """How the installed service may read the file: through a group that `make install` makes."""
    return f"Let the service read it: sudo chgrp qwen-proxy-env {path} && sudo chmod 0640 {path}"


def with_options(environ: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
    """The environment with a note of what the command line sets; `layered` follows it."""
    return {**environ, _OPTIONS: json.dumps({**_options(environ), **options})}


def layered(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment with what the file says now, and with the options of the command line.

    Args:
        environ: may have been layered before, perhaps with what the file said then.

    Raises:
        SettingsError: the file cannot be read.
    """
    base = beneath(environ)
    path = base.get(VARIABLE, "").strip()
    found = read(path) if path else None
    return over(base, {} if found is None else found.values)


def over(base: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Lay values of a file, and the options, over an environment that has neither."""
    upper = {name: value for name, value in values.items() if name not in _RESERVED}
    upper |= _options(base)
    if not upper:
        return dict(base)
    return {**base, **upper, _BENEATH: json.dumps({name: base.get(name) for name in upper})}


def beneath(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what file and options have set."""
    base = dict(environ)
    for name, value in _object(base.pop(_BENEATH, "")).items():
        if value is None:
            base.pop(name, None)
        else:
            base[name] = value
    return base


def keep(
    old: Mapping[str, str], new: Mapping[str, str], names: Iterable[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Keep some variables of an old layered environment in a new one.

    Returns:
        The new environment with them, and the names of those that would have changed.
    """
    changed = tuple(name for name in names if old.get(name) != new.get(name))
    if not changed:
        return dict(new), ()
    kept, base = dict(new), beneath(new)
    for name in changed:
        kept.pop(name, None)
        if name in old:
            kept[name] = old[name]
    noted = _object(kept.get(_BENEATH, "")) | {name: base.get(name) for name in changed}
    return {**kept, _BENEATH: json.dumps(noted)}, changed


def source(environ: Mapping[str, str], name: str) -> str:
    """Where the value of a variable comes from: the file's path, `environment`, `command line`."""
    if name in _options(environ):
        return COMMAND_LINE
    if name in _object(environ.get(_BENEATH, "")) and name in environ:
        return environ.get(VARIABLE, "").strip()
    return ENVIRONMENT if environ.get(name, "").strip() else DEFAULT


def has_values(environ: Mapping[str, str]) -> bool:
    """Whether the file has set something in a layered environment."""
    return bool(_object(environ.get(_BENEATH, "")).keys() - _options(environ).keys())


def _options(environ: Mapping[str, str]) -> dict[str, str]:
    noted = _object(environ.get(_OPTIONS, ""))
    return {name: value for name, value in noted.items() if value is not None}


def _object(text: str) -> dict[str, str | None]:
    """A JSON object of variables. Both are written by this module alone; others set nothing."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
