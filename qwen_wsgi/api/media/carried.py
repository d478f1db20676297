"""An answer that is sent as it comes, and is no chat: sound, a video, a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import (
    ApiError,
    ClientGone,
    InternalError,
    StreamBroken,
    UpstreamError,
    forget_frames,
)

log: Final = logging.getLogger(__name__)


class Carried:
    """The body of such an answer, for one client.

    A failure in its middle breaks the connection, so that the client cannot take what came for the
    whole. `close` must be called on every exit; how it ended is written to the record.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        record: CallRecord,
        close: Callable[[], None],
        *,
        last_words: Callable[[ApiError], bytes] = lambda error: b"",
    ) -> None:
        """
        Args:
            pieces: of the body, as they come.
            close: frees the upstream; harmless when repeated.
            last_words: what is sent of a failure before the connection breaks.
        """
        self._pieces = pieces
        self._record = record
        self._close = close
        self._last_words = last_words

    def __iter__(self) -> Iterator[bytes]:
        record = self._record
        try:
            yield from self._pieces
            record.outcome = "complete"
            return
        except ApiError as error:
            forget_frames(error)
            record.outcome = "upstream_error" if isinstance(error, UpstreamError) else "refused"
            last = self._failed(error)
        except (GeneratorExit, ClientGone):
            raise
        except Exception as fault:  # the outermost frame: nothing else can report it any more
            log.error("fault in an answer call=%s", record.request_id, exc_info=fault)
            record.outcome = "failed"
            last = self._failed(InternalError("The proxy failed on this answer."))
        except BaseException:  # the worker is stopping, and its time for open answers is over
            record.outcome = "cut_by_stop"
            last = b""
        if last:
            yield last
        raise StreamBroken("the answer failed after its head was sent")

    def close(self) -> None:
        """Stop the upstream. Harmless when repeated."""
        if self._record.outcome == "open":
            self._record.outcome = "client_gone"
        self._close()

    def _failed(self, error: ApiError) -> bytes:
        self._record.error_code = error.code or error.type
        return self._last_words(error)
