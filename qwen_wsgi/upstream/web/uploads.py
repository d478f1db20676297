"""Uploads the pictures of a call to the storage of chat.qwen.ai, in the account of the call."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.web import WebCredential
from qwen_wsgi.errors import Failure, Scope, UpstreamError
from qwen_wsgi.protocol.web.oss import BadPlace, Place, place_of
from qwen_wsgi.protocol.web.pictures import Picture, entry_of
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.routing.accounts import base_url_of
from qwen_wsgi.upstream.web.site import SHORT_S, WebSite

_PATH: Final = "/api/v2/files/getstsToken"
#: A picture that was uploaded is named again for so long: conversations send it with each turn.
_KEPT_S: Final = 1800.0
_MOST_KEPT: Final = 512
#: Nothing was asked yet, so the call may be tried again. It says nothing of the account.
_FAILED: Final = Failure("storage", Scope.REQUEST, retry=True, elsewhere=True)

#: A login by its digest, and a picture by its.
_Key = tuple[str, str]


class WebUploads:
    """Uploads pictures. Shared by all greenlets of a worker.

    It knows for a while what was uploaded, by login and bytes, so that another attempt of the same
    call, and the next turn of a conversation, uploads nothing. One login never gets what another
    one has uploaded.
    """

    def __init__(
        self, settings: Settings, site: WebSite, downloads: Downloads, clock: Clock
    ) -> None:
        self._site = site
        self._downloads = downloads
        self._clock = clock
        self._within_s = settings.first_byte_timeout_s
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, tuple[float, dict[str, Any]]] = OrderedDict()

    def put(
        self, account: Account, pictures: Iterable[Picture], headers: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Upload pictures; the entries that name them in a message.

        All of them together have the time that the first byte of an answer has.

        Raises:
            ApiError: one of them could not be uploaded; the message says which.
        """
        end_s = self._clock.monotonic() + self._within_s
        entries = []
        for number, picture in enumerate(pictures, 1):
            key = _key(account, picture)
            if (entry := self._known(key)) is None:
                entry = self._put(account, picture, number, headers, end_s)
                self._keep(key, entry)
            entries.append(entry)
        return entries

    def forget(self, account: Account, pictures: Sequence[Picture]) -> None:
        """Upload them anew the next time: a request that names them was refused."""
        with self._lock:
            for picture in pictures:
                self._kept.pop(_key(account, picture), None)

    def _put(
        self,
        account: Account,
        picture: Picture,
        number: int,
        headers: Mapping[str, str],
        end_s: float,
    ) -> dict[str, Any]:
        left_s = end_s - self._clock.monotonic()
        if left_s <= 0:
            raise _failed(number, "the uploads of this call took too long")
        place = self._place(account, picture, number, headers, min(left_s, SHORT_S))
        now = self._clock.now()
        try:
            status = self._downloads.send(
                place.url,
                base_url_of(account),
                (picture.data,),
                place.headers(picture.content_type, now),
                method="PUT",
                within_s=end_s - self._clock.monotonic(),
            )
        except UpstreamError as error:
            raise _failed(number, error.message.rstrip(".")) from None
        if status != 200:
            raise _failed(number, f"its storage answered HTTP {status}")
        return entry_of(picture, place, now, lambda: str(uuid.uuid4()))

    def _place(
        self,
        account: Account,
        picture: Picture,
        number: int,
        headers: Mapping[str, str],
        within_s: float,
    ) -> Place:
        answer = self._site.ask(
            account, "POST", _PATH, picture.wanted_place, headers=headers, timeout_s=within_s
        )
        try:
            return place_of(answer)
        except BadPlace as error:
            raise _failed(number, f"it gave a place without a usable `{error}`") from None

    def _known(self, key: _Key) -> dict[str, Any] | None:
        with self._lock:
            until_s, entry = self._kept.get(key, (0.0, {}))
            if until_s > self._clock.monotonic():
                return entry
            self._kept.pop(key, None)
            return None

    def _keep(self, key: _Key, entry: dict[str, Any]) -> None:
        with self._lock:
            self._kept[key] = (self._clock.monotonic() + _KEPT_S, entry)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)


def _key(account: Account, picture: Picture) -> _Key:
    assert isinstance(account.credential, WebCredential)
    return account.credential.digest, picture.digest


def _failed(number: int, why: str) -> UpstreamError:
    return UpstreamError(
        f"Picture {number} of the request could not be uploaded to chat.qwen.ai: {why}.",
        code="upstream_upload_failed",
        failure=_FAILED,
    )
