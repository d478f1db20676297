"""One attempt of a chat call at a web account: a temporary chat, its answer, and its deletion."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream
from qwen_wsgi.protocol.web.models import named
from qwen_wsgi.protocol.web.pictures import Picture
from qwen_wsgi.protocol.web.request import web_request
from qwen_wsgi.protocol.web.stream import WebChunkStream
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.open_stream import OpenStream, empty
from qwen_wsgi.upstream.routing.router import Route
from qwen_wsgi.upstream.web.chats import COMPLETIONS, TemporaryChat, WebChats
from qwen_wsgi.upstream.web.site import Opened, WebSite
from qwen_wsgi.upstream.web.uploads import WebUploads


class _WebStream(OpenStream):
    """A stream of a temporary chat, which is deleted when the stream is closed."""

    __slots__ = ("_chat",)

    def __init__(self, chat: TemporaryChat, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._chat = chat

    def close(self) -> None:
        """Stop the upstream, release the slot, and have the chat deleted."""
        try:
            super().close()
        finally:
            self._chat.delete()


class WebAttempt:
    """Makes single attempts; shared by all greenlets of a worker.

    Args:
        listed: the models that an account's host lists itself, see `Router.listed`.
    """

    def __init__(
        self,
        settings: Settings,
        site: WebSite,
        chats: WebChats,
        uploads: WebUploads,
        clock: Clock,
        *,
        listed: Callable[[Account], Collection[str]] = lambda account: (),
    ) -> None:
        self._settings = settings
        self._site = site
        self._chats = chats
        self._uploads = uploads
        self._listed = listed
        self._clock = clock

    def open(
        self,
        route: Route,
        request: ChatRequest,
        *,
        headers: Mapping[str, str],
        record: CallRecord,
        changed: tuple[str, ...],
        hide_usage: bool,
    ) -> OpenStream:
        """Open a stream and wait for its first event; the caller must close it.

        Args:
            changed: what the translation from the client's dialect changed.

        Raises:
            ApiError: the request cannot be asked there, or the account did not answer.
        """
        account = route.account
        wanted = web_request(
            request,
            named(route.model, self._listed(account)),
            searching=route.search,
            thinking=route.thinking,
            strict=self._settings.strict,
        )
        name = request.model or route.model
        renamed = (f"model:{header_token(wanted.model)}",) if wanted.model != name else ()
        record.changed = (*changed, *renamed, *wanted.changed)
        sent_at, now = self._clock.monotonic(), self._clock.now()
        files = self._uploads.put(account, wanted.pictures, headers)
        chat = self._chats.open(account, wanted.new_chat(now), headers)
        try:
            body = wanted.completion(chat.id, now, lambda: str(uuid.uuid4()), files)
            opened = self._asked(account, COMPLETIONS + chat.id, body, headers, wanted.pictures)
            chunks = WebChunkStream(
                id=record.completion_id, model=name, created=int(now), hide_usage=hide_usage
            )

            def explain(_: ChunkStream) -> UpstreamError:
                if chunks.reported is None:
                    return empty()
                return self._site.error(account, opened.token, chunks.reported)

            stream = _WebStream(
                chat,
                opened.reader,
                chunks,
                record,
                monotonic=self._clock.monotonic,
                idle_s=self._settings.idle_timeout_s,
                patience_s=self._settings.first_byte_timeout_s,
                sent_at=sent_at,
                explain=explain,
            )
            _opened(stream.open, opened.reader.close)
        except BaseException:
            chat.delete()
            raise
        return stream

    def _asked(
        self,
        account: Account,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        pictures: Sequence[Picture],
    ) -> Opened:
        try:
            return self._site.open(account, path, body, headers=headers)
        except UpstreamError as error:
            if error.code == "upstream_refused":
                self._uploads.forget(account, pictures)
            raise


def _opened(open: Callable[[], None], close: Callable[[], None]) -> None:
    """Wait for the first event; close the connection if none comes."""
    try:
        open()
    except BaseException:
        close()
        raise
