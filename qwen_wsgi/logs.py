"""Log lines for people or for programs, with every known secret taken out."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any, Final, TextIO

from qwen_wsgi.settings import mask

#: What looks like a secret even if we never saw it: bearer tokens and vendor keys.
_LOOKS_SECRET: Final = re.compile(r"(?i)(\bbearer\s+|\bsk-)([A-Za-z0-9._~+/=-]{8,})")


class Redaction(logging.Filter):
    """Masks secrets in messages and tracebacks: the last line of defence, not the first.

    Args:
        secrets: values known at start. Tokens that are read later are caught by their look, or
            never reach a log because their types mask themselves.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        known = {s for s in secrets if len(s) >= 6}
        # As JSON writes them, too: fields are escaped before the line is searched.
        known |= {json.dumps(s)[1:-1] for s in known}
        self._secrets = sorted(known, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """The text with each secret replaced by its mask."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, mask(secret))
        # The two searches cost a tenth of the pattern, and most lines have neither word.
        lower = text.lower()
        if "sk-" not in lower and "bearer" not in lower:
            return text
        return _LOOKS_SECRET.sub(lambda m: m.group(1) + mask(m.group(2)), text)


class Formatter(logging.Formatter):
    """`human`: time, level, message, `key=value`; `json`: one object a line."""

    def __init__(self, style: str, redaction: Redaction) -> None:
        super().__init__()
        self._json = style == "json"
        self._redaction = redaction
        #: The latest second and how it is written: one call in a hundred needs a new one.
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        second = int(record.created)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        stamp = f"{self._second[1]}.{int(record.msecs):03d}Z"
        if self._json:
            line = {"time": stamp, "level": record.levelname, "logger": record.name}
            line |= {"event": message, **fields} | ({"trace": trace} if trace else {})
            return self._redaction.redact(json.dumps(line, ensure_ascii=False, default=str))
        # Messages quote what others wrote, and must stay one line.
        told = message if message.isprintable() else json.dumps(message)[1:-1]
        parts = [stamp, f"{record.levelname:<7}", told]
        parts += [f"{name}={_value(value)}" for name, value in fields.items()]
        return self._redaction.redact(" ".join(parts) + (f"\n{trace}" if trace else ""))


def _value(value: object) -> str:
    text = str(value)
    if isinstance(value, (int, float)):  # noqa: UP038  # a union is made anew each time
        return text
    # Client-made text (a model name) must not break or forge a line.
    if text.isprintable() and " " not in text and '"' not in text and text:
        return text
    return json.dumps(text)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes and flushes a line with the lock that it holds already, which the original takes a
    second time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except Exception:  # as the original: logging must not fail who logs
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
