"""Chats at the web API: temporary ones for calls, and the deletion of those that an owner names."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from qwen_wsgi import greenlets
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.web import WebCredential
from qwen_wsgi.errors import ApiError, forget_frames
from qwen_wsgi.protocol.json_access import mapping, text
from qwen_wsgi.protocol.web.errors import REFUSED, Reported
from qwen_wsgi.upstream.routing.accounts import token_of
from qwen_wsgi.upstream.web.left_chats import LeftChats
from qwen_wsgi.upstream.web.site import WebSite

log = logging.getLogger(__name__)

PATH: Final = "/api/v2/chats"
#: Behind it stands the id of a chat.
COMPLETIONS: Final = "/api/v2/chat/completions?chat_id="
#: Two tries of a deletion are over within 5 s.
_DELETE_S: Final = 2.2
_TRIES: Final = 2
_AT_A_TIME: Final = 4


class TemporaryChat:
    """A chat that a call made; `delete` it at the call's end, on every way out."""

    def __init__(self, id: str, delete: Callable[[], None]) -> None:
        self.id = id
        self._delete: Callable[[], None] | None = delete

    def delete(self) -> None:
        """Have it deleted soon, without waiting for that. Harmless when repeated."""
        delete, self._delete = self._delete, None
        if delete is not None:
            delete()


class _Opening:
    """A chat that is being opened; whoever leaves meanwhile has it deleted when it is there."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.chat: TemporaryChat | None = None
        self.error: ApiError | None = None
        self.abandoned = False

    def run(self, make: Callable[[], TemporaryChat]) -> None:
        try:
            self.chat = make()
        except ApiError as error:
            forget_frames(error)
            self.error = error
        finally:
            self.ended.set()
        if self.abandoned and self.chat is not None:
            self.chat.delete()


class WebChats:
    """Opens and deletes chats. Shared by all greenlets of a worker.

    Args:
        left: knows which chats are to be deleted yet, also those of other workers; None knows none.
    """

    def __init__(self, site: WebSite, left: LeftChats | None = None) -> None:
        self._site = site
        self._left = left or LeftChats(None)
        self._pending = 0

    def open(
        self, account: Account, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> TemporaryChat:
        """Open a chat. It is opened beside the caller: if the client leaves meanwhile, the chat is
        deleted as soon as its id is known.

        Raises:
            ApiError: it cannot be opened.
        """
        self.delete_left(account, headers)
        opening = _Opening()
        greenlets.later(partial(opening.run, partial(self._open, account, body, headers)))
        try:
            opening.ended.wait()
        except BaseException:
            opening.abandoned = True
            if opening.chat is not None:
                opening.chat.delete()
            raise
        if opening.error is not None:
            raise opening.error
        assert opening.chat is not None
        return opening.chat

    def _open(
        self, account: Account, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> TemporaryChat:
        value = self._site.ask(account, "POST", PATH + "/new", body, headers=headers)
        id = text(mapping(value.get("data")).get("id"))
        if not _is_id(id):
            raise self._site.error(
                account, token_of(account), Reported(REFUSED, "it opened a chat without an id")
            )
        self._left.note(_login(account), id)
        return TemporaryChat(id, partial(self._delete_soon, account, id, dict(headers)))

    def delete_left(self, account: Account, headers: Mapping[str, str]) -> None:
        """Have the chats of a login deleted that killed workers have left, and those that could not
        be deleted before."""
        for id in self._left.take(_login(account)):
            self._delete_soon(account, id, headers)

    def sweep(self) -> None:
        """Forget chats that were left long ago."""
        self._left.sweep()

    def _delete_soon(self, account: Account, id: str, headers: Mapping[str, str]) -> None:
        self._pending += 1
        greenlets.later(partial(self._delete_now, account, id, headers))

    def _delete_now(self, account: Account, id: str, headers: Mapping[str, str]) -> None:
        try:
            for attempt in range(_TRIES):
                try:
                    self.delete(account, id, headers, timeout_s=_DELETE_S)
                    return
                except ApiError as error:
                    forget_frames(error)
                    if attempt == _TRIES - 1:
                        self._left.give_up(_login(account), id)
                        log.warning(
                            "a temporary chat was not deleted account=%s: %s",
                            account.name,
                            error.message,
                        )
        finally:
            self._pending -= 1

    def delete(
        self, account: Account, id: str, headers: Mapping[str, str], *, timeout_s: float = 15.0
    ) -> None:
        """Delete one chat.

        Raises:
            ApiError: it was not deleted.
        """
        self._site.ask(account, "DELETE", f"{PATH}/{id}", headers=headers, timeout_s=timeout_s)
        self._left.forget(_login(account), id)

    def delete_each(
        self, account: Account, ids: Sequence[str], headers: Mapping[str, str]
    ) -> list[ApiError | None]:
        """Delete some chats; for each of them None, or why it was not deleted."""

        def tried(id: str) -> ApiError | None:
            try:
                self.delete(account, id, headers)
            except ApiError as error:
                forget_frames(error)
                return error
            return None

        works = [partial(tried, id) for id in ids]
        return list(greenlets.in_order(works, at_a_time=_AT_A_TIME))

    def delete_all(self, account: Account, headers: Mapping[str, str]) -> None:
        """Delete all chats of the account, also those that were not made here.

        Raises:
            ApiError: they were not deleted.
        """
        self._site.ask(account, "DELETE", PATH, headers=headers)

    def drain(self, timeout_s: float = 5.0) -> None:
        """Wait until the deletions that were begun have ended, at the end of the worker."""
        end_s = time.monotonic() + timeout_s
        while self._pending and time.monotonic() < end_s:
            time.sleep(0.02)


def _login(account: Account) -> str:
    assert isinstance(account.credential, WebCredential)
    return account.credential.digest


def _is_id(id: str) -> bool:
    return (
        0 < len(id) <= 128 and all(each.isalnum() or each in "-_" for each in id) and id.isascii()
    )
