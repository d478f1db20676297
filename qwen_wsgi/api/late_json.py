"""A JSON answer that takes longer than clients and proxies wait for a first byte."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api import http
from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.errors import ApiError, ClientGone, InternalError, UpstreamError, forget_frames
from qwen_wsgi.greenlets import Task
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.settings import Settings
from qwen_wsgi.shortage import shortage_of
from qwen_wsgi.upstream.relay import stopping

log = logging.getLogger(__name__)


class LateJson:
    """An answer whose work runs in a task of its own; white space comes before it, which JSON may
    begin with (RFC 8259 §2).

    Used by one greenlet. `close` must be called on every exit; it stops the work.
    """

    def __init__(self, work: Callable[[], Any], *, settings: Settings, record: CallRecord) -> None:
        self._settings = settings
        self._record = record
        self._work = Task(work, discard=lambda made: None)

    def response(self) -> Response:
        """The answer, or its beginning once the silence has been long enough.

        Raises:
            ApiError: the work failed before that; answer with its status.
        """
        off = self._settings.keepalive == "off"
        if self._work.wait(None if off else self._settings.keepalive_interval_s):
            made = self._work.take()
            self._record.outcome = "complete"
            return http.json_value(made)
        response = FinishedResponse(self, content_type="application/json")
        response.headers.add("cache-control", "no-cache")
        response.headers.add("x-accel-buffering", "no")
        return response

    def __iter__(self) -> Iterator[bytes]:
        record, wait_s = self._record, 0.0
        try:
            while not self._work.wait(wait_s):
                yield b"\n"
                wait_s = self._settings.keepalive_interval_s
            made = self._work.take()
            record.outcome = "complete"
        except ApiError as error:
            forget_frames(error)
            made = self._failed(
                error, "upstream_error" if isinstance(error, UpstreamError) else "refused"
            )
        except (GeneratorExit, ClientGone):
            raise
        except Exception as fault:  # the outermost frame: after the 200 nothing else can report it
            shortage = shortage_of(fault)
            log.error("fault in an answer call=%s", record.request_id, exc_info=fault)
            made = self._failed(
                InternalError("The proxy failed on this call.")
                if shortage is None
                else shortage.error(),
                "failed",
            )
        except BaseException:  # the worker is stopping, and its time for open calls is over
            made = self._failed(stopping(), "cut_by_stop")
        yield compact(made).encode()

    def _failed(self, error: ApiError, outcome: str) -> Any:
        self._record.outcome, self._record.error_code = outcome, error.code or error.type
        return error.body()

    def close(self) -> None:
        """Stop the work. Harmless when repeated."""
        if self._record.outcome == "open":
            self._record.outcome = "client_gone"
        self._work.cancel()
