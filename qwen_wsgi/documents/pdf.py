"""Extracts the text layer of PDF documents: a bounded process for each, and a cache."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import Clock

log = logging.getLogger(__name__)

#: The library that reads them; an extra, `pip install 'qwen-wsgi[pdf]'`.
LIBRARY: Final = "pypdf"

#: Bytes of a PDF: Anthropic's limit for a request.
_LARGEST: Final = 32 << 20
#: Processes of a worker at a time: each takes a core for up to `pdf_process.CPU_S` seconds.
_PROCESSES: Final = 2
#: Seconds for all documents of a request that are not in the cache.
_BUDGET_S: Final = 20.0
#: With so much time a document that is not ready will not be the next time: the process has
#: `pdf_process.CPU_S`.
_FAIR_S: Final = 10.0
#: Characters of texts that a worker keeps: agents send a document again with every turn.
_CACHED_CHARS: Final = 16_000_000

_PROGRAM: Final = Path(__file__).with_name("pdf_process.py")


class PdfReader:
    """Reads PDFs; shared by the greenlets of a worker.

    Args:
        command: a program that gets a PDF on its standard input and writes its text; None starts
            `pdf_process` if its library is installed.
    """

    def __init__(self, clock: Clock, *, command: Sequence[str] | None = None) -> None:
        self._clock = clock
        self._command = _own_command() if command is None else command
        self._places = threading.BoundedSemaphore(_PROCESSES)
        #: By digest; "" for one without text.
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._cached = 0

    def texts_of(self, documents: Iterable[str]) -> Mapping[str, str]:
        """The texts of PDFs, by their base64; those that cannot be read in time are left out.

        Args:
            documents: base64 as the client sent it.
        """
        end_s = self._clock.monotonic() + _BUDGET_S
        found = {}
        for document in documents:
            text = self._text_of(document, end_s)
            if text:
                found[document] = text
        return found

    def _text_of(self, document: str, end_s: float) -> str:
        digest = hashlib.sha256(document.encode(errors="replace")).digest()
        if (known := self._texts.get(digest)) is not None:
            self._texts.move_to_end(digest)
            return known
        if not self._command or len(document) > _LARGEST * 4 // 3:
            return ""
        try:
            data = base64.b64decode(document, validate=True)
        except ValueError:
            return ""
        left_s = end_s - self._clock.monotonic()
        if left_s <= 0 or not self._places.acquire(timeout=left_s):
            return ""  # not remembered: the next turn may have time for it
        try:
            left_s = max(0.1, end_s - self._clock.monotonic())
            text = self._run(data, left_s)
        finally:
            self._places.release()
        # What did not even start, or had little time left by others, is tried again next turn.
        if text is not None or left_s > _FAIR_S:
            self._remember(digest, text or "")
        return text or ""

    def _run(self, data: bytes, timeout_s: float) -> str | None:
        """The text; "" if it has none or is no PDF; None if that was not found out."""
        # Its own environment: this process's holds keys.
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            with subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            ) as process:
                try:
                    text, _ = process.communicate(data, timeout=timeout_s)
                finally:  # also when the client is gone meanwhile
                    if process.poll() is None:
                        process.kill()
        except (subprocess.TimeoutExpired, OSError) as error:
            log.warning("a PDF could not be read bytes=%d: %s", len(data), type(error).__name__)
            return None
        if process.returncode != 0:
            log.warning("a PDF could not be read bytes=%d exit=%d", len(data), process.returncode)
            return ""
        return text.decode(errors="replace")

    def _remember(self, digest: bytes, text: str) -> None:
        # Another call may have read the same document meanwhile.
        self._cached += len(text) - len(self._texts.get(digest, ""))
        self._texts[digest] = text
        while self._cached > _CACHED_CHARS or len(self._texts) > 1000:
            _, oldest = self._texts.popitem(last=False)
            self._cached -= len(oldest)


def _own_command() -> Sequence[str]:
    """The command of `pdf_process`; empty if its library is not installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        return ()
    return (sys.executable, str(_PROGRAM))
