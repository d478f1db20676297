"""One request to the web API, and what its failures mean. Headers are honest: nothing of a browser
is made up, and no cookie is sent that the token does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import web
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import Failure, Scope, UpstreamError
from qwen_wsgi.protocol.json_access import mapping, read
from qwen_wsgi.protocol.json_object import MOST_SLOWLY, encoded
from qwen_wsgi.protocol.web import errors
from qwen_wsgi.protocol.web.errors import Reported
from qwen_wsgi.redaction import mask, mask_lookalikes
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from qwen_wsgi.upstream.http.transport import ERROR_BODY_BYTES, Response, Transport
from qwen_wsgi.upstream.routing.accounts import token_of

_USER: Final = "/api/v1/auths/"
#: For an answer that is not a model's.
SHORT_S: Final = 15.0
#: After a challenge the operator's account is left alone for so long.
_CHALLENGED_S: Final = 900.0
_CHALLENGE: Final = (
    "chat.qwen.ai asks for a captcha. This proxy neither solves nor evades that: open "
    "chat.qwen.ai in the browser that the token is from, solve it there, and try again with less "
    "text; or use a model of an account with an API key."
)
_REJECTED: Final = (
    "chat.qwen.ai refused the web token: it has expired, or its owner has logged out. Log in there "
    "with a browser again, and make a new one."
)
#: Of the client's headers, those that go on: who calls, and how many proxies it went through.
_PASSED: Final = ("User-Agent", "X-Qwen-Proxy-Hops")


@dataclass(frozen=True)
class Opened:
    """A stream whose head has come, and the token that got it; its owner closes the reader."""

    response: Response
    reader: BodyReader
    token: AccessToken


class WebSite:
    """Asks the web API. Shared by all greenlets of a worker; keeps nothing of a call."""

    def __init__(self, settings: Settings, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._first_byte_s = settings.first_byte_timeout_s

    def ask(
        self,
        account: Account,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = SHORT_S,
    ) -> dict[str, Any]:
        """A whole JSON answer.

        Raises:
            ApiError: no usable token, no answer, a refusal, a challenge, or no JSON object.
        """
        token = token_of(account)
        end_s = self._clock.monotonic() + timeout_s
        response = self._transport.send(
            method,
            token,
            path,
            None if body is None else encoded(body),
            headers={**_passed(headers), "Accept": "application/json"},
            read_timeout_s=timeout_s,
        )
        reader = BodyReader(response)
        try:
            data = self._transport.read_all(
                reader, end_s - self._clock.monotonic(), timeout_s=timeout_s
            )
        finally:
            reader.close()
        value = _json_of(data)
        if response.status_code == 200 and value is not None:
            if (reported := errors.reported_by(value)) is None:
                return value
            raise self.error(account, token, reported)
        raise self._refusal(account, token, response.status_code, data)

    def user_of(
        self, account: Account, *, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What the host says of the user of an account's token, and perhaps a fresh `token`.

        Raises: as `ask`.
        """
        answer = self.ask(account, "GET", _USER, headers=headers)
        return answer if "id" in answer or "token" in answer else mapping(answer.get("data"))

    def open(
        self, account: Account, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str]
    ) -> Opened:
        """An event stream whose head has come.

        Raises:
            ApiError: as `ask`; also where the answer is no event stream, as failures are told.
        """
        token = token_of(account)
        response = self._transport.send(
            "POST",
            token,
            path,
            encoded(body),
            headers={**_passed(headers), "Accept": "text/event-stream"},
            read_timeout_s=self._first_byte_s,
        )
        reader = BodyReader(response)
        kind = response.headers.get("content-type", "")
        if response.status_code == 200 and kind.startswith("text/event-stream"):
            return Opened(response, reader, token)
        try:
            data = reader.read_all(SHORT_S, limit=ERROR_BODY_BYTES, cut=True)
        except (ReadTimeout, BodyBroken):
            data = b""
        finally:
            reader.close()
        raise self._refusal(account, token, response.status_code, data)

    def _refusal(
        self, account: Account, token: AccessToken, status: int, data: bytes
    ) -> UpstreamError:
        reported = errors.reported_by(_json_of(data))
        if reported is None and errors.is_challenge(data):
            reported = Reported(errors.CHALLENGE)
        if reported is None:
            by_status = {401: errors.UNAUTHORIZED, 403: errors.UNAUTHORIZED}
            by_status[429] = errors.RATE_LIMITED
            usual = errors.INTERNAL if status >= 500 else errors.REFUSED
            said = f"HTTP {status} with an answer that is neither events nor known JSON"
            reported = Reported(by_status.get(status, usual), said)
        return self.error(account, token, reported)

    def error(self, account: Account, token: AccessToken, reported: Reported) -> UpstreamError:
        """The client's error for a failure that the web API reported."""
        own = account.name == web.HOLDER
        said = _without(reported.message, token)
        told = f"chat.qwen.ai: {said}." if said else "chat.qwen.ai did not say why."
        if reported.cause == errors.CHALLENGE:
            return UpstreamError(
                _CHALLENGE,
                status=503,
                code="upstream_challenge",
                should_retry=False,
                upstream_message=said,
                failure=Failure(
                    "challenge",
                    Scope.REQUEST if own else Scope.ACCOUNT,
                    retry=False,
                    elsewhere=not own,
                    wait_s=None if own else _CHALLENGED_S,
                    remedy=_CHALLENGE,
                ),
            )
        if reported.cause == errors.UNAUTHORIZED:
            return UpstreamError(
                _REJECTED,
                status=401 if own else 502,
                type="invalid_request_error" if own else None,
                code="web_token_rejected" if own else "upstream_account_refused",
                should_retry=False,
                upstream_message=said,
                failure=Failure("login_refused", Scope.REQUEST, retry=False, elsewhere=True)
                if own
                else CAUSES["login_refused"].failure(),
            )
        if reported.cause == errors.RATE_LIMITED:
            wait_s = reported.wait_s
            return UpstreamError(
                f"The web account's limit is reached. {told}",
                status=429,
                type="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
                should_retry=wait_s is None,
                upstream_message=said,
                failure=Failure(
                    "usage_limited" if wait_s else "rate_limited",
                    Scope.ACCOUNT if wait_s else Scope.ACCOUNT_MODEL,
                    retry=wait_s is None,
                    elsewhere=True,
                    wait_s=wait_s,
                ),
            )
        if reported.cause == errors.INTERNAL:
            return UpstreamError(
                f"chat.qwen.ai failed inside. {told}",
                code="upstream_internal_error",
                upstream_message=said,
                failure=Failure("internal_error", Scope.REQUEST, retry=True, elsewhere=True),
            )
        return UpstreamError(
            f"chat.qwen.ai refused the request. {told}",
            code="upstream_refused",
            should_retry=False,
            upstream_message=said,
            failure=Failure("unexpected", Scope.REQUEST, retry=False, elsewhere=True),
        )


def _passed(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name: headers[name] for name in _PASSED if headers and name in headers}


def _without(text: str, token: AccessToken) -> str:
    """A text of the host without the secrets that it was sent."""
    for secret in (token.value, token.cookies):
        if secret:
            text = text.replace(secret, mask(secret))
    return mask_lookalikes(text).rstrip(".")


def _json_of(data: bytes) -> dict[str, Any] | None:
    value = read(data, most_slowly=MOST_SLOWLY)
    return value if isinstance(value, dict) else None
