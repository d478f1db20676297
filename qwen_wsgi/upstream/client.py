"""Attempts: one chat request to one account, up to the first event or to the whole answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import requests

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import AccountUnavailable, ApiError, CredentialError, UpstreamError
from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from qwen_wsgi.upstream.http.transport import (
    ANSWER_BYTES,
    ERROR_BODY_BYTES,
    Transport,
    broken,
    read_all,
    silence,
)
from qwen_wsgi.upstream.routing.limiter import Slot

_CHAT_PATH = "/chat/completions"

#: Content types of an answer that is no stream. Whatever else it is called is read as one: some
#: servers name no type for their streams, or text/plain.
_WHOLE = ("application/json", "text/html")

#: After `[DONE]` only the last chunk of the framing is to come. If it does not come at once, the
#: connection is given up rather than the client kept waiting for the end of its answer.
_DRAIN_S = 0.1


@dataclass
class Answer:
    """A whole answer for the client.

    Attributes:
        body: JSON bytes.
        usage: what the call used, if the upstream told.
        upstream_request_id: the upstream's own id of the call, or "".
        value: what `body` says.
    """

    body: bytes
    usage: Usage | None
    upstream_request_id: str
    value: dict[str, Any]


@dataclass
class OpenStream:
    """An upstream stream whose first event is there. Its owner must `close` it.

    Attributes:
        reader: None where all of it is in `first`.
        connect_s: what setting up the connection took; 0.0 for one that was kept.
        place: is left when the stream is closed.
        explain: what an error means that the upstream told inside the stream.
        on_failure: to be told of a failure after the first event.
    """

    reader: BodyReader | None
    chunks: ChunkStream
    #: Whole events for the client, at least one.
    first: bytes
    upstream_request_id: str
    connect_s: float = 0.0
    place: Slot | None = None
    explain: Callable[[ChunkStream], UpstreamError] = lambda chunks: empty()
    on_failure: Callable[[ApiError], None] = lambda error: None
    #: The upstream's bytes have ended.
    over: bool = False
    blocks: sse.EventBlocks = field(default_factory=sse.EventBlocks)

    def read(self, timeout_s: float) -> bytes | None:
        """The next events for the client; `b""` if what came is not for it, None at the end.

        Raises:
            ReadTimeout: nothing came; ask again or give up.
            UpstreamError: the stream broke, or the upstream told an error.
        """
        self.raise_what_was_told()
        if self.chunks.done or self.over or self.reader is None:
            return None
        try:
            data = self.reader.read(timeout_s)
            block = self.blocks.push(data) if data else self._last_block()
        except BodyBroken as error:
            raise broken(error) from error
        except sse.EventTooLarge as error:
            raise broken(error) from error
        told = self.chunks.feed(block) if block else b""
        if not told:
            self.raise_what_was_told()
        if data:
            return told
        self.over = True
        return told + self.chunks.end() or None

    def raise_what_was_told(self) -> None:
        """Fail if the upstream told an error.

        Raises:
            UpstreamError: what it means.
        """
        if self.chunks.failed:
            raise self.explain(self.chunks)

    def _last_block(self) -> bytes:
        """What stands at the end without a blank line: whole if it can be parsed, else nothing."""
        rest = self.blocks.rest().strip()
        self.blocks = sse.EventBlocks()
        whole = sse.parse(rest) is not None or sse.is_done(rest)
        return rest + b"\n\n" if whole else b""

    def drain(self) -> None:
        """Read to the end of the framing, so that the connection can serve another call."""
        try:
            while self.reader is not None and self.reader.read(_DRAIN_S):
                pass
        except (ReadTimeout, BodyBroken):
            return

    def close(self) -> None:
        """Let go of the upstream; closes the connection unless its answer ended."""
        if self.reader is not None:
            self.reader.close()
        if self.place is not None:
            self.place.leave()


class UpstreamClient:
    """Asks accounts. Shared by all greenlets of a worker; keeps no state of a call."""

    def __init__(self, settings: Settings, transport: Transport, clock: Clock) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = clock

    def open_stream(
        self, account: Account, body: bytes, *, headers: Mapping[str, str], chunks: ChunkStream
    ) -> OpenStream:
        """Ask for a stream and wait for its first event.

        Raises:
            ApiError: what the client is to be told; nothing was sent to it yet.
        """
        deadline = self._clock.monotonic() + self._settings.first_byte_timeout_s
        response = self._post(account, _CHAT_PATH, body, {**headers, "Accept": "text/event-stream"})
        stream = OpenStream(
            reader=BodyReader(response),
            chunks=chunks,
            explain=partial(self._told_error, account),
            first=b"",
            upstream_request_id=response.headers.get("x-request-id", ""),
            connect_s=getattr(response.raw, "connect_s", 0.0),
        )
        try:
            kind = response.headers.get("content-type", "")
            if kind.startswith(_WHOLE):
                stream.first = self._unstreamed(account, stream, response)
            else:
                stream.first = self._first_events(account, stream, deadline)
        except BaseException:
            stream.close()
            raise
        return stream

    def whole(self, account: Account, body: bytes, *, headers: Mapping[str, str]) -> Answer:
        """Ask for a whole answer, not streamed; carried as it came.

        Raises:
            ApiError: what the client is to be told.
        """
        data, value, upstream_id = self.post_json(account, _CHAT_PATH, body, headers=headers)
        return Answer(data, parse_usage(value.get("usage")), upstream_id, value)

    def aggregate(self, account: Account, stream: OpenStream) -> Completion:
        """Read a stream to its end and put its chunks together.

        Raises:
            UpstreamError: it broke off, or failed.
        """
        completion = Completion()
        events: bytes | None = stream.first
        spoken = self._clock.monotonic()
        while events is not None:
            if events:
                spoken = self._clock.monotonic()
            elif self._clock.monotonic() - spoken >= self._settings.first_byte_timeout_s:
                raise silence(self._settings.first_byte_timeout_s)  # signs of life, nothing else
            for event in sse.events(events):
                chunk = sse.parse(event)
                if isinstance(chunk, dict):
                    completion.add(chunk)
            try:
                events = stream.read(self._settings.idle_timeout_s)
            except ReadTimeout:
                raise silence(self._settings.idle_timeout_s) from None
        if not stream.chunks.complete:
            raise ended_early() if stream.chunks.answered else empty()
        return completion

    def post_json(
        self, account: Account, path: str, body: bytes, *, headers: Mapping[str, str]
    ) -> tuple[bytes, Any, str]:
        """POST and read a whole JSON answer: its bytes, its value, the upstream's request id.

        Raises:
            ApiError: no answer, a refusal, or no JSON.
        """
        response = self._post(account, path, body, {**headers, "Accept": "application/json"})
        reader = BodyReader(response)
        try:
            data = read_all(reader, self._settings.first_byte_timeout_s, ANSWER_BYTES)
        finally:
            reader.close()
        value = _whole_answer(response, data, account)
        return data, value, response.headers.get("x-request-id", "")

    def asks_stream(self, account: Account) -> bool:
        """Whether a whole answer is got by way of a stream: Model Studio cuts other calls at 300 s
        and returns the part as a success."""
        if self._settings.upstream_stream == "auto":
            return account.family.is_qwen and not account.explicit
        return self._settings.upstream_stream == "always"

    def _post(
        self, account: Account, path: str, body: bytes, headers: Mapping[str, str]
    ) -> requests.Response:
        """Send; a response is returned only with status 200.

        Raises:
            ApiError: no usable credential, no answer, or a refusal.
        """
        token = token_of(account)
        response = self._send(token, path, body, headers)
        if response.status_code == 401 and account.kind == "oauth":
            # The access token may have been revoked, or renewed by somebody else. Once, and with
            # another token: a second 401 is no expiry.
            self._said(response)
            token = token_of(account, rejected=token.value)
            response = self._send(token, path, body, headers)
        if response.status_code == 200:
            return response
        error = classify.from_response(
            response.status_code,
            response.headers,
            self._said(response),
            account=account.name,
            family=account.family,
            now=self._clock.now(),
        )
        if response.status_code == 401 and account.kind == "oauth":
            token_of(account, rejected=token.value)  # says what it means, and remembers it
        raise error

    def _send(
        self, token: AccessToken, path: str, body: bytes, headers: Mapping[str, str]
    ) -> requests.Response:
        return self._transport.post(
            token,
            path,
            body,
            headers=headers,
            read_timeout_s=self._settings.first_byte_timeout_s,
        )

    def _said(self, response: requests.Response) -> bytes:
        """The body of a refusal, as far as it comes."""
        reader = BodyReader(response)
        try:
            return reader.read_all(self._settings.connect_timeout_s, limit=ERROR_BODY_BYTES)
        except (ReadTimeout, BodyBroken):
            return b""  # the status alone must do
        finally:
            reader.close()

    def _first_events(self, account: Account, stream: OpenStream, deadline: float) -> bytes:
        """What comes first. A beginning that says nothing yet (only a role) is held back for one
        more read: throttling may come right behind it, and can still be told by its status."""
        held = b""
        while True:
            left = deadline - self._clock.monotonic()
            try:
                events = stream.read(max(left, 0.001))
            except ReadTimeout:
                raise silence(self._settings.first_byte_timeout_s) from None
            chunks = stream.chunks
            if events and (held or chunks.answered or chunks.complete):
                return held + events
            if events is None or (chunks.done and not chunks.complete):
                raise empty()
            held += events

    def _told_error(self, account: Account, chunks: ChunkStream) -> UpstreamError:
        """What an error means that was told as an event, or as the text of an answer."""
        text, name, family = chunks.error_finish, account.name, account.family
        now = self._clock.now()
        if text is not None:
            return classify.from_error_finish(text, account=name, family=family, now=now)
        error = classify.from_frame(chunks.error, account=name, family=family, now=now)
        error.frame = chunks.frame
        return error

    def _unstreamed(
        self, account: Account, stream: OpenStream, response: requests.Response
    ) -> bytes:
        """The events of an upstream that answered a stream request with a whole completion."""
        assert stream.reader is not None
        data = read_all(stream.reader, self._settings.idle_timeout_s, ANSWER_BYTES)
        completion = _whole_answer(response, data, account)
        events = b"".join(chat.chunks_of(completion, with_usage=True)) + sse.DONE
        first = stream.chunks.feed(events)
        stream.raise_what_was_told()
        if not stream.chunks.complete:
            raise empty()
        return first


def token_of(account: Account, *, rejected: str | None = None) -> AccessToken:
    """The account's credential for a call now.

    Args:
        rejected: the token that the upstream refused; another one is returned.

    Raises:
        AccountUnavailable: there is none; says what the operator has to do.
    """
    try:
        return account.credential.current(rejected=rejected)
    except CredentialError as error:
        raise AccountUnavailable(
            f"The proxy's account '{account.name}' cannot be used: {error} {error.remedy}".strip(),
            code=error.code,
            retry_after_s=error.retry_after_s,
            should_retry=None if error.retry_after_s else False,
        ) from error


def empty() -> UpstreamError:
    """The upstream's answer has neither content nor a finish."""
    return UpstreamError(
        "The upstream ended its answer without any content. Nothing was generated.",
        code="upstream_empty",
    )


def ended_early() -> UpstreamError:
    """The stream ended in good order, but without a finish reason."""
    return UpstreamError(
        "The upstream's answer ended without a finish. What came before is incomplete.",
        code="upstream_broken",
    )


def _whole_answer(response: requests.Response, data: bytes, account: Account) -> dict[str, Any]:
    """The JSON object of a 200 answer.

    Raises:
        UpstreamError: it is no JSON object, or an error in disguise.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise classify.no_answer(
            response.headers, data, account=account.name, family=account.family
        )
    if (error := chat.error_of(value)) is not None:
        raise classify.from_frame(error, account=account.name, family=account.family)
    if "ret" in value and "choices" not in value:
        # A captcha, for one, may come as JSON.
        raise classify.no_answer(
            response.headers, data, account=account.name, family=account.family
        )
    return value
