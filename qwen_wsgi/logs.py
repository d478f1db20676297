"""Log lines for people, for the journal or for programs, with every known secret masked."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, TextIO

from qwen_wsgi.redaction import DISCOVERED, Redaction

#: Characters of a message, which may quote what came from outside.
_LONGEST_MESSAGE: Final = 4000
#: The priorities of syslog (sd-daemon(3)), by the lowest level that has them.
_PRIORITIES: Final = (
    (logging.CRITICAL, "<2>"),
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
    (logging.DEBUG, "<7>"),
)

#: Values that need no look at their text: most of a call's line.
_NUMBERS: Final = frozenset({int, float})

#: Texts that stand in a line as they are: most others of it.
_PLAIN: Final = re.compile(r"[!#-~]+").fullmatch


class Formatter(logging.Formatter):
    """`human`: time, level, message, `key=value`; `json`: one object a line.

    Args:
        journal: the lines go to systemd's journal, which has a time of its own, and which takes the
            level of a line from a number before it. Programs get the same objects as elsewhere.
    """

    def __init__(self, style: str, redaction: Redaction, *, journal: bool = False) -> None:
        super().__init__()
        self._json = style == "json"
        self._journal = journal
        self._redaction = redaction
        #: The latest second and its text, so that most lines need not format the date again.
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        if len(message) > _LONGEST_MESSAGE:
            # Before it is cut: half a secret is not recognized.
            message = self._redaction.redact(message)[:_LONGEST_MESSAGE] + "…"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        second = int(record.created)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        stamp = f"{self._second[1]}.{int(record.msecs):03d}Z"
        if self._json:
            line = {"time": stamp, "level": record.levelname, "logger": record.name}
            line |= {"event": message, **fields} | ({"trace": trace} if trace else {})
            shown = json.dumps(line, ensure_ascii=False, default=str)
            if not shown.isprintable():
                # Controls beyond ASCII (U+009B), line ends of Unicode, marks that turn text around.
                shown = json.dumps(line, default=str)
            return self._redaction.redact(shown)
        # A message may quote text from outside, and must stay one line.
        shown = message if message.isprintable() else json.dumps(message)[1:-1]
        parts = [f"{record.levelname:<7}", shown]
        if not self._journal:
            parts.insert(0, stamp)
        parts += [
            f"{name}={value}"
            if type(value) in _NUMBERS or (type(value) is str and _PLAIN(value))
            else f"{name}={_value(value)}"
            for name, value in fields.items()
        ]
        text = self._redaction.redact(" ".join(parts) + (f"\n{trace}" if trace else ""))
        return in_journal(text, record.levelno) if self._journal else text


def in_journal(text: str, level: int) -> str:
    """A text with its priority before each line: the journal makes an entry of each."""
    prefix = next((each for lowest, each in _PRIORITIES if level >= lowest), "<7>")
    return prefix + text.replace("\n", f"\n{prefix}")


def is_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Whether a stream leads to systemd's journal.

    systemd names the device and inode of the stream that it has connected (systemd.exec(5)); a
    program that inherits the variable may write somewhere else.
    """
    named = environ.get("JOURNAL_STREAM", "")
    if not named:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


def _value(value: object) -> str:
    text = str(value)
    # Text from a client (a model name) must not break or forge a line.
    if text.isprintable() and " " not in text and '"' not in text and text:
        return text
    return json.dumps(text)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes and flushes a line under the lock that `handle` holds; the original takes it twice."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except Exception:  # as in the original: a failing log must not fail the caller
            self.handleError(record)


def configure(
    *,
    level: str,
    style: str,
    secrets: Iterable[str],
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send the package's logs to `stream` (standard error when None). A further call takes the
    place of the one before.

    Args:
        environ: of this process, to find out whether the stream is systemd's journal.
    """
    handler = _Handler(stream or sys.stderr)
    journal = is_journal(environ or {}, handler.stream)
    handler.setFormatter(Formatter(style, Redaction(secrets, DISCOVERED), journal=journal))
    root = logging.getLogger("qwen_wsgi")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
