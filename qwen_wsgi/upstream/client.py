"""One request to one account: a stream up to its first event, or a whole JSON answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.redaction import mask
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from qwen_wsgi.upstream.http.transport import (
    ANSWER_BYTES,
    ERROR_BODY_BYTES,
    Response,
    Transport,
    read_all,
)
from qwen_wsgi.upstream.open_stream import OpenStream, empty
from qwen_wsgi.upstream.routing.accounts import token_of
from qwen_wsgi.upstream.routing.outcomes import Outcomes

log = logging.getLogger(__name__)

CHAT_PATH: Final = "/chat/completions"

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
    """Sends requests to accounts. Shared by all greenlets of a worker; keeps no state of a call.

    Args:
        outcomes: how requests end is noted there; None makes one that nobody else sees.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        clock: Clock,
        outcomes: Outcomes | None = None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = clock
        self._outcomes = outcomes or Outcomes(None)

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
        try:
            stream = self._opened(account, body, headers, chunks, record)
        except ApiError as error:
            self._outcomes.failed(account, error)
            raise
        self._outcomes.answered(account)
        return stream

    def _opened(
        self,
        account: Account,
        body: bytes,
        headers: Mapping[str, str],
        chunks: ChunkStream,
        record: CallRecord,
    ) -> OpenStream:
        sent_at = self._clock.monotonic()
        record.upstream_request_id = ""
        accepting = {**headers, "Accept": "text/event-stream"}
        response = self._post(account, CHAT_PATH, body, accepting, record.request_id)
        # Also of an answer that fails.
        record.upstream_request_id = response.headers.get("x-request-id", "")
        stream = OpenStream(
            BodyReader(response),
            chunks,
            record,
            monotonic=self._clock.monotonic,
            idle_s=self._settings.idle_timeout_s,
            patience_s=self._settings.first_byte_timeout_s,
            sent_at=sent_at,
            explain=partial(self._reported_error, account),
        )
        try:
            if response.headers.get("content-type", "").startswith(_WHOLE):
                stream.begin(self._unstreamed(account, stream, response))
            else:
                stream.open()
        except BaseException:
            stream.close()
            raise
        record.connect_s = getattr(response.raw, "connect_s", 0.0)
        return stream

    def post_json(
        self,
        account: Account,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        request_id: str = "",
    ) -> JsonAnswer:
        """POST, and read a whole JSON answer.

        Args:
            request_id: the call's, for the log.

        Raises:
            ApiError: no usable credential, no answer, a refusal, or no JSON object.
        """
        try:
            answer = self._posted(account, path, body, headers, request_id)
        except ApiError as error:
            self._outcomes.failed(account, error)
            raise
        self._outcomes.answered(account)
        return answer

    def _posted(
        self, account: Account, path: str, body: bytes, headers: Mapping[str, str], request_id: str
    ) -> JsonAnswer:
        accepting = {**headers, "Accept": "application/json"}
        response = self._post(account, path, body, accepting, request_id)
        reader = BodyReader(response)
        try:
            data = read_all(reader, self._settings.first_byte_timeout_s, ANSWER_BYTES)
        finally:
            reader.close()
        value = _json_answer(response, data, account)
        return JsonAnswer(data, value, response.headers.get("x-request-id", ""))

    def asks_stream(self, account: Account) -> bool:
        """Whether a whole answer is read as a stream: Model Studio cuts other calls at 300 s and
        returns the part as a success."""
        if self._settings.upstream_stream == "auto":
            return account.family.is_qwen
        return self._settings.upstream_stream == "always"

    def _post(
        self, account: Account, path: str, body: bytes, headers: Mapping[str, str], request_id: str
    ) -> Response:
        """Send; a response is returned only with status 200.

        Raises:
            ApiError: no usable credential, no answer, or a refusal.
        """
        token = token_of(account)
        if log.isEnabledFor(logging.DEBUG):
            _log_request(request_id, account, token, path, body)
        wait_s = self._settings.first_byte_timeout_s
        post = self._transport.post
        response = post(token, path, body, headers=headers, read_timeout_s=wait_s)
        renewable = account.credential.renewable
        if response.status_code == 401 and renewable:
            # The access token may have been revoked, or refreshed by another process. Once, and
            # with another token: a second 401 is no expiry.
            self._error_body(response)
            token = token_of(account, rejected=token.value)
            if log.isEnabledFor(logging.DEBUG):
                _log_request(request_id, account, token, path, body)
            response = post(token, path, body, headers=headers, read_timeout_s=wait_s)
        if response.status_code == 200:
            return response
        error = classify.from_response(
            response.status_code,
            response.headers,
            self._error_body(response),
            account=account.name,
            family=account.family,
            now=self._clock.now(),
        )
        if response.status_code == 401 and renewable:
            token_of(account, rejected=token.value)  # raises what it means, and remembers it
        raise error

    def _error_body(self, response: Response) -> bytes:
        """The body of a refusal, as far as it comes."""
        reader = BodyReader(response)
        try:
            return reader.read_all(self._settings.connect_timeout_s, limit=ERROR_BODY_BYTES)
        except (ReadTimeout, BodyBroken):
            return b""  # the status alone must do
        finally:
            reader.close()

    def _reported_error(self, account: Account, chunks: ChunkStream) -> UpstreamError:
        """The error for a failure that was reported as an event, or as the text of an answer."""
        text, name, family = chunks.error_finish, account.name, account.family
        now = self._clock.now()
        if text is not None:
            return classify.from_error_finish(text, account=name, family=family, now=now)
        return classify.from_frame(chunks.error, account=name, family=family, now=now)

    def _unstreamed(self, account: Account, stream: OpenStream, response: Response) -> bytes:
        """The events of an upstream that answered a stream request with a whole completion."""
        assert stream.reader is not None
        data = read_all(stream.reader, self._settings.idle_timeout_s, ANSWER_BYTES)
        completion = _json_answer(response, data, account)
        events = b"".join(chat.chunks_of(completion, with_usage=True)) + sse.DONE
        first = stream.chunks.feed(events)
        stream.fail_if_reported()
        if not stream.chunks.complete:
            raise empty()
        return first


def _log_request(
    request_id: str, account: Account, token: AccessToken, path: str, body: bytes
) -> None:
    """Log where a request goes and where its token is from; neither the token nor the body."""
    fields = {
        "request_id": request_id,
        "account": account.name,
        "token_from": account.origin,
        "token": mask(token.value) if token.value else "none",
        "base_url": token.base_url,
        "request": f"POST {path}",
        "bytes": len(body),
    }
    log.debug("upstream request", extra={"fields": fields})


def _json_answer(response: Response, data: bytes, account: Account) -> dict[str, Any]:
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
        made = classify.from_frame(error, account=account.name, family=account.family)
        made.upstream_request_id = classify.request_id(response.headers, data)
        raise made
    if "ret" in value and "choices" not in value:
        # A captcha, for one, may come as JSON.
        raise classify.no_answer(
            response.headers, data, account=account.name, family=account.family
        )
    return value
