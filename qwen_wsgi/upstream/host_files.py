"""Files and batches at hosts: requests without a model, of which some must not be sent twice."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import ApiError, Scope, UpstreamError
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from qwen_wsgi.upstream.http.transport import broken, silence
from qwen_wsgi.upstream.retry import Retrier, ask_no_more
from qwen_wsgi.upstream.routing.router import Plan, Route

T = TypeVar("T")

#: Causes of a refusal (`failures.causes`) that mean: the host has no such file or batch.
_ABSENT: Final = frozenset({"not_found", "wrong_address", "model_not_found"})

#: What a name of a file may not hold in a head, and how browsers write it (WHATWG, multipart).
_QUOTED: Final = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A", "\0": "%00"})
_NAME_CHARS: Final = 512

_TYPE: Final = re.compile(
    r"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}(?:; ?charset=[\w-]{1,32})?", re.ASCII
)


class Upload:
    """A multipart body with one file, made while it is sent. Sent at most once.

    Attributes:
        begun: a part of the file was taken, so it cannot be sent again.
        complete: all of it was taken.
    """

    def __init__(
        self,
        filename: str,
        file_type: str,
        pieces: Iterator[bytes],
        *,
        before: Mapping[str, str],
        behind: Callable[[], Mapping[str, str]],
    ) -> None:
        """
        Args:
            pieces: the file; what it raises ends the upload unfinished.
            before: fields that are known already.
            behind: called after the file's end, for further fields; as `pieces`.
        """
        self._boundary = b"qwen-proxy-" + os.urandom(16).hex().encode()
        name = filename[:_NAME_CHARS].translate(_QUOTED) or "file"
        kind = file_type if _TYPE.fullmatch(file_type) else "application/octet-stream"
        self._head = f'name="file"; filename="{name}"\r\nContent-Type: {kind}'
        self._pieces = pieces
        self._before = before
        self._behind = behind
        self.begun = self.complete = False

    @property
    def content_type(self) -> str:
        """For the request's head."""
        return f"multipart/form-data; boundary={self._boundary.decode()}"

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        head = self._fields(self._before) + self._part(self._head)
        yield head
        yield from self._pieces
        yield b"\r\n" + self._fields(self._behind()) + b"--%b--\r\n" % self._boundary
        self.complete = True

    def _fields(self, fields: Mapping[str, str]) -> bytes:
        return b"".join(
            self._part(f'name="{name}"') + value.encode() + b"\r\n"
            for name, value in fields.items()
        )

    def _part(self, disposition: str) -> bytes:
        head = f"Content-Disposition: form-data; {disposition}\r\n\r\n".encode(errors="replace")
        return b"--%b\r\n%b" % (self._boundary, head)


class Told(NamedTuple):
    """What an account answered.

    Attributes:
        account: its name.
        value: its JSON object.
    """

    account: str
    value: dict[str, Any]


class Download:
    """The bytes of a file as they come from a host; `close` it on every way out."""

    def __init__(self, reader: BodyReader, content_type: str, idle_s: float) -> None:
        self._reader = reader
        self._idle_s = idle_s
        self.content_type = content_type
        #: Of the whole file; None where the host does not say it.
        self.length = reader.length

    def pieces(self) -> Iterator[bytes]:
        """The file, as it arrives.

        Raises:
            ApiError: it broke off, or nothing came for too long.
        """
        try:
            while data := self._reader.read(self._idle_s):
                yield data
        except ReadTimeout:
            raise silence(self._idle_s, "QWEN_PROXY_IDLE_TIMEOUT") from None
        except BodyBroken as error:
            raise broken(error) from error

    def close(self) -> None:
        """Let go of the host. Harmless when repeated."""
        self._reader.close()


class HostFiles:
    """Asks accounts for their files and batches. Shared by all greenlets of a worker."""

    def __init__(self, retrier: Retrier, client: UpstreamClient, *, idle_s: float) -> None:
        self._retrier = retrier
        self._client = client
        self._idle_s = idle_s

    def upload(
        self, plan: Plan, upload: Upload, headers: Mapping[str, str], record: CallRecord
    ) -> Told:
        """Send a file to the first account of the plan that takes it.

        Once a piece of it was taken from the client, no other attempt is made.

        Raises:
            ApiError: of the client's body, or nobody took the file.
        """

        def ask(route: Route) -> Told:
            try:
                answer = self._client.send(
                    route.account,
                    "POST",
                    "/files",
                    upload,
                    headers=headers,
                    request_id=record.request_id,
                )
            except UpstreamError as error:
                if upload.begun:
                    _give_up(error, "file", sent=upload.complete)
                raise
            record.upstream_request_id = answer.upstream_request_id
            return Told(route.account.name, answer.value)

        return self._retrier.run(plan, lambda route, slot: ask(route), record)

    def ask(
        self,
        plan: Plan,
        method: str,
        path: str,
        headers: Mapping[str, str],
        record: CallRecord,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """A request about one file or batch; its JSON answer, or None if the host has none such.

        One that makes a batch is not repeated if its answer was lost: it would be billed twice.

        Raises:
            ApiError: the account did not answer, or refused.
        """
        data = None if body is None else compact(dict(body)).encode()

        def ask(route: Route) -> dict[str, Any] | None:
            try:
                answer = self._client.send(
                    route.account, method, path, data, headers=headers, request_id=record.request_id
                )
            except UpstreamError as error:
                if _is_absent(error):
                    return None
                if data is not None and _may_be_done(error):
                    _give_up(error, "batch", sent=True)
                raise
            record.upstream_request_id = answer.upstream_request_id
            return answer.value

        return self._retrier.run(plan, lambda route, slot: ask(route), record)

    def download(
        self, plan: Plan, path: str, headers: Mapping[str, str], record: CallRecord
    ) -> Download | None:
        """The content of a file, which the caller must close; None if the host has none such.

        Raises:
            ApiError: as `ask`.
        """

        def ask(route: Route) -> Download | None:
            try:
                response = self._client.download(
                    route.account, path, headers=headers, request_id=record.request_id
                )
            except UpstreamError as error:
                if _is_absent(error):
                    return None
                raise
            kind = response.headers.get("content-type", "")
            if not _TYPE.fullmatch(kind):
                kind = "application/octet-stream"
            return Download(BodyReader(response), kind, self._idle_s)

        return self._retrier.run(
            plan,
            lambda route, slot: ask(route),
            record,
            discard=lambda found: found.close() if found is not None else None,
        )


def _is_absent(error: ApiError) -> bool:
    failure = error.failure if isinstance(error, UpstreamError) else None
    return failure is not None and failure.cause in _ABSENT


def _may_be_done(error: UpstreamError) -> bool:
    """Whether the host may have done what it was asked for, although no good answer came: it
    failed, or the connection did after it was there."""
    failure = error.failure
    unsent = error.code in ("upstream_unreachable", "upstream_connect_timeout")
    return failure is None or (failure.scope in (Scope.UPSTREAM, Scope.REQUEST) and not unsent)


def _give_up(error: UpstreamError, what: str, *, sent: bool) -> None:
    """Have a request not sent again, and tell the client what is known of it.

    Args:
        sent: all of it went out.
    """
    if not sent or error.upstream_message:
        ask_no_more(error)  # the host did not get all of it, or says itself what became of it
    else:
        ask_no_more(
            error,
            f" It is not known whether the account has made the {what}, so the request was not "
            "repeated. If you send it again, there may be two.",
        )
