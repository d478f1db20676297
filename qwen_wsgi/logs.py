"""Log lines for people or for programs, with every known secret masked."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any, Final, TextIO

from qwen_wsgi.redaction import Redaction

#: Characters of a message, which may quote what came from outside.
_LONGEST_MESSAGE: Final = 4000


class Formatter(logging.Formatter):
    """`human`: time, level, message, `key=value`; `json`: one object a line."""

    def __init__(self, style: str, redaction: Redaction) -> None:
        super().__init__()
        self._json = style == "json"
        self._redaction = redaction
        #: The latest second and its text, so that most lines need not format the date again.
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + "…"
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
        parts = [stamp, f"{record.levelname:<7}", shown]
        parts += [f"{name}={_value(value)}" for name, value in fields.items()]
        return self._redaction.redact(" ".join(parts) + (f"\n{trace}" if trace else ""))


def _value(value: object) -> str:
    text = str(value)
    if isinstance(value, (int, float)):  # noqa: UP038  # a union would be built at each call
        return text
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
    *, level: str, style: str, secrets: Iterable[str], stream: TextIO | None = None
) -> None:
    """Send the package's logs to `stream` (standard error when None). Called once per process."""
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(Formatter(style, Redaction(secrets)))
    root = logging.getLogger("qwen_wsgi")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
