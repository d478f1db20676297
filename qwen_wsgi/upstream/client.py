"""One request to one account: a stream up to its first event, or a whole JSON answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import AnswerTooLarge, UpstreamError
from qwen_wsgi.hosts import origin_of
from qwen_wsgi.protocol import chat, json_access, sse
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.protocol.json_object import MOST_SLOWLY, encoded, loads
from qwen_wsgi.redaction import mask
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from qwen_wsgi.upstream.http.http1 import StreamedBody
from qwen_wsgi.upstream.http.transport import (
    ERROR_BODY_BYTES,
    FIRST_BYTE,
    FLEX,
    Response,
    Transport,
)
from qwen_wsgi.upstream.native_stream import NativeStream
from qwen_wsgi.upstream.open_stream import OpenStream, empty
from qwen_wsgi.upstream.routing.accounts import token_of

CHAT_PATH: Final = "/chat/completions"

_log: Final = logging.getLogger(__name__)
#: Its level is looked at for each request: `isEnabledFor` would be a call.
_PACKAGE_LOG: Final = logging.getLogger("qwen_wsgi")

#: Content types of an answer that is no stream. Whatever else it is called is read as one: some
#: servers name no type for their streams, or text/plain.
_WHOLE: Final = ("application/json", "text/html")


class JsonAnswer(NamedTuple):
    """A whole answer of an upstream.

    Attributes:
        body: its bytes.
        value: the JSON object in them.
        upstream_request_id: the upstream's own id of the request, or "".
    """

    body: bytes
    value: dict[str, Any]
    upstream_request_id: str


class UpstreamClient:
    """Sends requests to accounts. Shared by all greenlets of a worker; keeps no state of a call."""

    def __init__(self, settings: Settings, transport: Transport, clock: Clock) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = clock

    def open_stream(
        self,
        account: Account,
        body: bytes,
        *,
        headers: Mapping[str, str],
        chunks: ChunkStream,
        record: CallRecord,
    ) -> OpenStream:
        """Ask for a chat stream, and wait for its first event.

        Raises:
            ApiError: no usable credential, no answer, or a refusal; nothing was sent to the client.
        """
        sent_at = self._clock.monotonic()
        record.upstream_request_id = ""
        accepting = {**headers, "Accept": "text/event-stream"}
        response, token = self._request(
            account, CHAT_PATH, body, accepting, sent_at, record.request_id
        )
        # Also of an answer that fails.
        offered = response.headers.get("x-request-id", "")
        if classify.REQUEST_ID.fullmatch(offered):
            record.upstream_request_id = offered
        reader = BodyReader(response)
        try:
            stream = OpenStream(
                reader,
                chunks,
                record,
                monotonic=self._clock.monotonic,
                idle_s=self._settings.idle_timeout_s,
                patience_s=account.batch_wait_s or self._settings.first_byte_timeout_s,
                patience_by=FLEX if account.batch_wait_s else FIRST_BYTE,
                sent_at=sent_at,
                explain=partial(self._reported_error, account, token),
            )
            if response.headers.get("content-type", "").startswith(_WHOLE):
                stream.begin(self._unstreamed(account, token, stream, response, sent_at))
            else:
                stream.open()
        except BaseException:
            reader.close()
            raise
        record.connect_s = getattr(response, "connect_s", 0.0)
        response.headers.clear()  # read by now, and a stream may last for long
        return stream

    def post_json(
        self,
        account: Account,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        at_origin: bool = False,
        request_id: str = "",
        size: AnswerSize | None = None,
    ) -> JsonAnswer:
        """`send` as POST."""
        return self.send(
            account,
            "POST",
            path,
            body,
            headers=headers,
            at_origin=at_origin,
            request_id=request_id,
            size=size,
        )

    def send(
        self,
        account: Account,
        method: str,
        path: str,
        body: bytes | StreamedBody | None = None,
        *,
        headers: Mapping[str, str],
        at_origin: bool = False,
        request_id: str = "",
        size: AnswerSize | None = None,
    ) -> JsonAnswer:
        """Send a request, and read a whole JSON answer.

        Args:
            body: a streamed one is sent once, and the time for the answer begins at its end.
            at_origin: the path is behind the host's name, not behind the base URL.
            request_id: the call's, for the log.
            size: counts this answer and others, which become one.

        Raises:
            ApiError: no usable credential, no answer, a refusal, or no JSON object.
        """
        sent_at = self._clock.monotonic()
        accepting = {**headers, "Accept": "application/json"}
        response, token = self._request(
            account, path, body, accepting, sent_at, request_id, method=method, at_origin=at_origin
        )
        if not isinstance(body, bytes | None):
            sent_at = self._clock.monotonic()
        whole_s = account.batch_wait_s or self._settings.first_byte_timeout_s
        try:
            data = self._transport.body_of(
                response,
                sent_at + whole_s - self._clock.monotonic(),
                timeout_s=whole_s,
                setting=FLEX if account.batch_wait_s else FIRST_BYTE,
                size=size,
            )
        except BaseException:
            response.close()
            raise
        return _json_answer(response, data, account, token, self._clock.now())

    def download(
        self, account: Account, path: str, *, headers: Mapping[str, str], request_id: str = ""
    ) -> Response:
        """GET; the answer's body is left to the caller, who must close it.

        Raises:
            ApiError: no usable credential, no answer, or a refusal.
        """
        sent_at = self._clock.monotonic()
        response, _ = self._request(account, path, None, headers, sent_at, request_id, method="GET")
        return response

    def open_native(
        self,
        account: Account,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        record: CallRecord,
        at_origin: bool = True,
    ) -> NativeStream:
        """Ask for a stream of JSON events, and wait for the first one.

        Args:
            at_origin: of the native API; else of a path behind the base URL.

        Raises:
            ApiError: no usable credential, no answer, or a refusal.
        """
        sent_at = self._clock.monotonic()
        asking = {**headers, "Accept": "text/event-stream"}
        if at_origin:
            asking["X-DashScope-SSE"] = "enable"
        response, token = self._request(
            account, path, body, asking, sent_at, record.request_id, at_origin=at_origin
        )
        record.upstream_request_id = classify.request_id(response.headers, secrets=_secrets(token))
        reader, clock = BodyReader(response), self._clock
        try:
            stream = NativeStream(
                reader,
                record,
                monotonic=clock.monotonic,
                first_s=self._settings.first_byte_timeout_s,
                idle_s=self._settings.idle_timeout_s,
                explain=lambda error: _reported(None, error, account, token, clock.now()),
                whole=response.headers.get("content-type", "").startswith(_WHOLE),
            )
            stream.open()
        except BaseException:
            reader.close()
            raise
        return stream

    def get_json(self, account: Account, path: str, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """GET a JSON object of the native API, behind the host's name.

        Raises:
            ApiError: no usable credential, no answer in time, a refusal, or no JSON object.
        """
        token = token_of(account)
        token = replace(token, base_url=origin_of(token.base_url))
        status, body = self._transport.get(token, path, timeout_s=timeout_s)
        told: dict[str, Any] = {"account": account.name, "family": account.family}
        told["secrets"] = _secrets(token)
        if status != 200:
            raise classify.from_response(status, {}, body, **told, now=self._clock.now())
        value = json_access.read(body, most_slowly=MOST_SLOWLY)
        if not isinstance(value, dict):
            raise classify.no_answer({}, body, **told)
        return value

    def _request(
        self,
        account: Account,
        path: str,
        body: bytes | StreamedBody | None,
        headers: Mapping[str, str],
        sent_at: float,
        request_id: str,
        *,
        method: str = "POST",
        at_origin: bool = False,
    ) -> tuple[Response, AccessToken]:
        """Send; a response, with the token that got it, is returned only with status 200.

        Args:
            sent_at: the time, by the clock's monotonic time; the wait for the head begins here.

        Raises:
            ApiError: no usable credential, no answer, or a refusal.
        """
        token = token_of(account)
        if at_origin:
            token = replace(token, base_url=origin_of(token.base_url))
        if _PACKAGE_LOG.level <= logging.DEBUG:
            _log_request(request_id, account, token, method, path, body)
        wait_s = account.batch_wait_s or self._settings.first_byte_timeout_s
        setting = FLEX if account.batch_wait_s else FIRST_BYTE
        send = self._transport.send
        response = send(
            method, token, path, body, headers=headers, read_timeout_s=wait_s, setting=setting
        )
        renewable = account.credential.renewable
        if response.status_code == 401 and renewable and isinstance(body, bytes | None):
            # The access token may have been revoked, or refreshed by another process. Once, and
            # with another token: a second 401 is no expiry.
            self._error_body(response)
            token = token_of(account, rejected=token.value)
            if at_origin:
                token = replace(token, base_url=origin_of(token.base_url))
            if _PACKAGE_LOG.level <= logging.DEBUG:
                _log_request(request_id, account, token, method, path, body)
            wait_s = max(sent_at + wait_s - self._clock.monotonic(), 0.001)
            response = send(
                method, token, path, body, headers=headers, read_timeout_s=wait_s, setting=setting
            )
        if response.status_code == 200:
            if renewable:
                account.credential.answered(token)
            return response, token
        error = classify.from_response(
            response.status_code,
            response.headers,
            self._error_body(response),
            account=account.name,
            family=account.family,
            now=self._clock.now(),
            secrets=_secrets(token),
        )
        if response.status_code == 401 and renewable:
            token_of(account, rejected=token.value)  # raises what it means, and remembers it
        raise error

    def _whole_body(self, account: Account, reader: BodyReader, sent_at: float) -> bytes:
        """The body of a whole answer to a request for a stream, within the time for all of it.

        Args:
            sent_at: when it was asked for, by the clock's monotonic time.

        Raises:
            UpstreamError: it is too large, too slow or broken.
        """
        whole_s = account.batch_wait_s or self._settings.first_byte_timeout_s
        left_s = sent_at + whole_s - self._clock.monotonic()
        setting = FLEX if account.batch_wait_s else FIRST_BYTE
        return self._transport.read_all(reader, left_s, timeout_s=whole_s, setting=setting)

    def _error_body(self, response: Response) -> bytes:
        """The body of a refusal, as far as it comes."""
        reader = BodyReader(response)
        try:
            return reader.read_all(
                self._settings.connect_timeout_s, limit=ERROR_BODY_BYTES, cut=True
            )
        except (ReadTimeout, BodyBroken):
            return b""  # the status alone must do
        finally:
            reader.close()

    def _reported_error(
        self, account: Account, token: AccessToken, chunks: ChunkStream
    ) -> UpstreamError:
        """The error for a failure that was reported as an event, or as the text of an answer."""
        return _reported(chunks.error_finish, chunks.error, account, token, self._clock.now())

    def _unstreamed(
        self,
        account: Account,
        token: AccessToken,
        stream: OpenStream,
        response: Response,
        sent_at: float,
    ) -> bytes:
        """The events of an upstream that answered a stream request with a whole completion."""
        assert stream.reader is not None
        # No name for what is large and not needed any more.
        events = chat.chunks_of(
            _json_answer(
                response,
                self._whole_body(account, stream.reader, sent_at),
                account,
                token,
                self._clock.now(),
            ).value,
            with_usage=True,
        )
        events.append(sse.DONE)
        joined = b"".join(events)
        events.clear()
        first = stream.chunks.feed(joined)
        stream.fail_if_reported()
        if not stream.chunks.complete:
            raise empty()
        return first


def _log_request(
    request_id: str,
    account: Account,
    token: AccessToken,
    method: str,
    path: str,
    body: bytes | StreamedBody | None,
) -> None:
    """Log where a request goes and where its token is from; neither the token nor the body."""
    fields = {
        "request_id": request_id,
        "account": account.name,
        "token_from": account.origin,
        "token": mask(token.value) if token.value else "none",
        "base_url": token.base_url,
        "request": f"{method} {path}",
        "bytes": len(body) if isinstance(body, bytes) else 0,
    }
    _log.debug("upstream request", extra={"fields": fields})


def _secrets(token: AccessToken) -> tuple[str, ...]:
    """What an upstream was sent, and may quote."""
    return (token.value,) if token.value else ()


def _reported(
    text: str | None, error: Any, account: Account, token: AccessToken, now: float
) -> UpstreamError:
    """The error for a failure inside of a 200: the text of an answer, or an error object.

    Args:
        now: seconds since 1970.
    """
    name, family, secrets = account.name, account.family, _secrets(token)
    if text is not None:
        return classify.from_error_finish(
            text, account=name, family=family, now=now, secrets=secrets
        )
    return classify.from_frame(error, account=name, family=family, now=now, secrets=secrets)


def _hardly_json(data: bytes) -> Any:
    """JSON with `NaN` and the like, as Python's own servers write it; None for no JSON.

    Raises:
        AnswerTooLarge: it is too large to be tried.
    """
    if len(data) > MOST_SLOWLY:
        if not data.startswith(b"{"):
            return None
        raise AnswerTooLarge(
            "is broken JSON, or has NaN or unpaired surrogates in it, which may have "
            f"{MOST_SLOWLY >> 20} MiB"
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _json_answer(
    response: Response, data: bytes, account: Account, token: AccessToken, now: float
) -> JsonAnswer:
    """The JSON object of a 200 answer. Its bytes are JSON, even where the answer's were not quite.

    Args:
        now: seconds since 1970.

    Raises:
        UpstreamError: it is no JSON object, or an error in disguise.
    """
    strict = True
    try:
        value = loads(data, most_slowly=MOST_SLOWLY)
    except (ValueError, RecursionError):
        value, strict = _hardly_json(data), False
    text = error = None
    if isinstance(value, dict):
        text = chat.error_finish_of(value)
        if value.get("error") is not None or "choices" not in value:
            error = chat.error_of(value)
    if text is not None or error is not None:
        made = _reported(text, error, account, token, now)
        made.upstream_request_id = classify.request_id(response.headers, data, _secrets(token))
        raise made
    # A captcha, for one, may come as JSON.
    if not isinstance(value, dict) or ("ret" in value and "choices" not in value):
        raise classify.no_answer(
            response.headers,
            data,
            account=account.name,
            family=account.family,
            secrets=_secrets(token),
        )
    id = ""
    if "x-request-id" in response.headers:
        id = classify.request_id(response.headers, secrets=_secrets(token))
    return JsonAnswer(data if strict else encoded(value), value, id)
