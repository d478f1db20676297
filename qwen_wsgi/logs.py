"""Log lines for people, for the journal or for programs, with every known secret masked."""

from __future__ import annotations

import _thread
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

_NAMES: Final = {level: logging.getLevelName(level) for level, _ in _PRIORITIES}

#: Values that need no look at their text: most of a call's line.
_NUMBERS: Final = frozenset({int, float})

#: Texts that stand in a line as they are: most others of it.
_PLAIN: Final = re.compile(r"[!#-~]+").fullmatch


class Formatter(logging.Formatter):
    """`human`: time, level, message, `key=value`; `json`: one object a line.

    Args:
        journal: the lines go to systemd's journal, which has a time of its own, and which takes the
            level of a line from a number before it. Programs get the same objects as elsewhere.

    Attributes:
        is_json: the style.
    """

    def __init__(self, style: str, redaction: Redaction, *, journal: bool = False) -> None:
        super().__init__()
        self.is_json = style == "json"
        self._journal = journal
        self._redaction = redaction
        #: The latest second and its text, so that most lines need not format the date again.
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if len(message) > _LONGEST_MESSAGE:
            # Before it is cut: half a secret is not recognized.
            message = self._redaction.redact(message)[:_LONGEST_MESSAGE] + "…"
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        level, at = record.levelname, record.created
        if self.is_json:
            fields = {"event": message, **fields} | ({"trace": trace} if trace else {})
            return self.line(level, record.levelno, record.name, at, json_fields(fields))
        # A message may quote text from outside, and must stay one line.
        shown = message if message.isprintable() else json.dumps(message)[1:-1]
        if fields:
            shown += " " + human_fields(fields)
        if trace:
            shown += f"\n{trace}"
        return self.line(level, record.levelno, record.name, at, shown)

    def line(self, name: str, level: int, logger: str, at: float, text: str) -> str:
        """The whole line, of what comes after its beginning in this style.

        Args:
            name, level: of the level.
            at: seconds since 1970.
        """
        second = int(at)
        known, stamp = self._second
        if second != known:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second, stamp
        stamp = f"{stamp}.{int((at - second) * 1000):03d}Z"
        if self.is_json:
            return self._redaction.redact(
                f'{{"time": "{stamp}", "level": "{name}", "logger": "{logger}", {text}}}'
            )
        if self._journal:
            return in_journal(self._redaction.redact(f"{name:<7} {text}"), level)
        return self._redaction.redact(f"{stamp} {name:<7} {text}")


def json_fields(fields: Mapping[str, Any]) -> str:
    """The members of a JSON object, without its braces."""
    shown = _to_json(fields)
    if not shown.isprintable():
        # Controls beyond ASCII (U+009B), line ends of Unicode, marks that turn text around.
        shown = json.dumps(fields, default=str)
    return shown[1:-1]


def human_fields(fields: Mapping[str, Any]) -> str:
    """`key=value key=value`."""
    return " ".join(
        [
            f"{name}={value}"
            if type(value) in _NUMBERS or (type(value) is str and _PLAIN(value))
            else f"{name}={_value(value)}"
            for name, value in fields.items()
        ]
    )


_to_json: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode


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


class Handler(logging.StreamHandler[TextIO]):
    """Writes and flushes a line under the lock that `handle` holds; the original takes it twice."""

    formatter: Formatter

    def createLock(self) -> None:
        """Make the lock: C's own, which is taken in a tenth of the time of gevent's. That is for
        greenlets which switch while they hold it, and a stream's file is written without that."""
        super().createLock()  # sees to it that a fork makes it anew
        self.lock = _thread.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except Exception:  # as in the original: a failing log must not fail the caller
            self.handleError(record)

    def write(self, level: int, logger: str, event: str, fields: str) -> None:
        """Write a line that needs no record; for who got this handler from `only`.

        Args:
            level: one of logging's own.
            event: a plain word.
            fields: as `json_fields` or `human_fields` has rendered them.
        """
        try:
            form = self.formatter
            text = f'"event": "{event}", {fields}' if form.is_json else f"{event} {fields}"
            text = form.line(_NAMES[level], level, logger, time.time(), text)
            assert self.lock is not None, "handlers have one from their beginning"
            with self.lock:
                self.stream.write(text + self.terminator)
                self.stream.flush()
        except Exception:
            self.handleError(logging.LogRecord(logger, level, __file__, 0, event, (), None))


def only(log: logging.Logger, level: int) -> Handler | None:
    """The handler of `configure`, where it alone gets what a logger directly below that of the
    package logs; None where somebody listens who wants a record."""
    handlers = _ROOT.handlers
    if len(handlers) != 1 or _ROOT.propagate or log.handlers or log.filters or not log.propagate:
        return None
    found = handlers[0]
    if type(found) is not Handler or found.filters or level < found.level:
        return None
    return found


#: Of all loggers of the package.
_ROOT: Final = logging.getLogger("qwen_wsgi")


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
    handler = Handler(stream or sys.stderr)
    journal = is_journal(environ or {}, handler.stream)
    handler.setFormatter(Formatter(style, Redaction(secrets, DISCOVERED), journal=journal))
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(level)
    _ROOT.propagate = False
