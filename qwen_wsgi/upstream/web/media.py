"""Has pictures and videos made in temporary chats of a web account: one attempt each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol.images.request import ImageRequest
from qwen_wsgi.protocol.videos.request import VideoRequest
from qwen_wsgi.protocol.web import media
from qwen_wsgi.protocol.web.media import MediaRequest
from qwen_wsgi.protocol.web.models import named
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.web.chats import COMPLETIONS, PATH, TemporaryChat, WebChats
from qwen_wsgi.upstream.web.site import WebSite
from qwen_wsgi.upstream.web.uploads import WebUploads

_TASKS: Final = "/api/v1/tasks/status"
#: An address that the stream does not tell may come in the chat's history a bit later.
_LOOKS: Final = 5
_LOOK_EVERY_S: Final = 0.8


class WebMedia:
    """Makes single attempts; shared by all greenlets of a worker. What it returns has the form of
    Model Studio's native API, which the endpoints for pictures and videos read.

    Args:
        listed: the models that an account's host lists itself, see `Router.listed`.
    """

    def __init__(
        self,
        settings: Settings,
        site: WebSite,
        chats: WebChats,
        uploads: WebUploads,
        transport: Transport,
        clock: Clock,
        *,
        listed: Callable[[Account], Collection[str]] = lambda account: (),
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._strict = settings.strict
        self._within_s = settings.first_byte_timeout_s
        self._site = site
        self._chats = chats
        self._uploads = uploads
        self._transport = transport
        self._clock = clock
        self._listed = listed
        self._sleep = sleep

    def picture_request(self, account: Account, model: str, request: ImageRequest) -> MediaRequest:
        """A request for a picture, as the account takes it.

        Raises:
            ApiError: it cannot be asked there.
        """
        name = named(model, self._listed(account)).model
        return media.picture_request(request, name, strict=self._strict)

    def video_request(self, account: Account, model: str, request: VideoRequest) -> MediaRequest:
        """A request for a video, as the account takes it.

        Raises:
            ApiError: it cannot be asked there.
        """
        name = named(model, self._listed(account)).model
        return media.video_request(request, name, strict=self._strict)

    def upload(
        self, account: Account, wanted: MediaRequest, headers: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Upload the pictures of a request, once for all that is made of them.

        Raises:
            ApiError: one could not be uploaded.
        """
        return self._uploads.put(account, wanted.pictures, headers)

    def picture(
        self,
        account: Account,
        wanted: MediaRequest,
        files: list[dict[str, Any]],
        headers: Mapping[str, str],
    ) -> dict[str, Any]:
        """One picture: `{"output": {"results": [{"url"}]}}`.

        Raises:
            ApiError: none was made.
        """
        chat = self._chats.open(account, wanted.new_chat(self._clock.now()), headers)
        try:
            url = self._picture(account, chat, wanted, files, headers)
        finally:
            chat.delete()
        return {"output": {"results": [{"url": url}]}}

    def _picture(
        self,
        account: Account,
        chat: TemporaryChat,
        wanted: MediaRequest,
        files: list[dict[str, Any]],
        headers: Mapping[str, str],
    ) -> str:
        body = wanted.completion(chat.id, self._clock.now(), _new_id, files)
        end_s = self._clock.monotonic() + self._within_s
        opened = self._site.open(account, COMPLETIONS + chat.id, body, headers=headers)
        try:
            data = self._transport.read_all(
                opened.reader,
                end_s - self._clock.monotonic(),
                timeout_s=self._within_s,
                setting="QWEN_PROXY_FIRST_BYTE_TIMEOUT",
            )
        finally:
            opened.reader.close()
        made = media.made_in(data)
        if made.reported is not None:
            raise self._site.error(account, opened.token, made.reported)
        if made.urls:
            return made.urls[0]
        if made.said:  # a refusal in words; nothing else comes
            raise _none(f": {made.said}")
        return self._looked_up(account, chat, headers)

    def _looked_up(self, account: Account, chat: TemporaryChat, headers: Mapping[str, str]) -> str:
        """The picture by the chat's history, where the stream did not name it."""
        for _ in range(_LOOKS):
            self._sleep(_LOOK_EVERY_S)
            detail = self._site.ask(account, "GET", f"{PATH}/{chat.id}", headers=headers)
            if urls := media.made_in_chat(detail):
                return urls[0]
        raise _none(".")

    def begin_video(
        self, account: Account, wanted: MediaRequest, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """Begin the task of a video: `{"output": {"task_id", "task_status"}}`.

        Raises:
            ApiError: none was begun.
        """
        chat = self._chats.open(account, wanted.new_chat(self._clock.now()), headers)
        try:
            body = wanted.completion(chat.id, self._clock.now(), _new_id)
            answer = self._site.ask(
                account,
                "POST",
                COMPLETIONS + chat.id,
                body,
                headers=headers,
                timeout_s=self._within_s,
            )
        finally:
            chat.delete()
        task = media.task_of(answer)
        if not task:
            raise UpstreamError(
                "chat.qwen.ai began a video without naming its task. Whether one is made is not "
                "known.",
                code="upstream_bad_answer",
                should_retry=False,
            )
        return {"output": {"task_id": task, "task_status": "PENDING"}}

    def look(self, account: Account, id: str) -> dict[str, Any]:
        """The state of a task, see `protocol.web.media.task_state`.

        Raises:
            ApiError: no answer, or a refusal.
        """
        return media.task_state(self._site.ask(account, "GET", f"{_TASKS}/{id}"), id)


def _new_id() -> str:
    return str(uuid.uuid4())


def _none(said: str) -> UpstreamError:
    return UpstreamError(
        f"chat.qwen.ai made no picture{said}", code="upstream_no_picture", should_retry=False
    )
