"""Every failure that somebody outside may see, as one tree.

A failure knows its HTTP status, OpenAI's `type`, `code` and `param`, whether a retry can help, and
what to do about it. The API layer turns it into the dialect's envelope; the command line prints it.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack


class QwenProxyError(Exception):
    """The root. `str()` of it is one sentence for a person, and holds no secret."""


class SettingsError(QwenProxyError):
    """A setting, or a file that a setting names, cannot be used; the process must not start."""


class CannotStartYet(QwenProxyError):
    """Something that the start needs is not there, and may come without anybody's doing: the next
    start may succeed."""


class CredentialError(QwenProxyError):
    """An account has no usable credential now.

    Attributes:
        code: a stable word for programs: `credentials_expired`, `credentials_missing`, ...
        remedy: what the operator should do, as a sentence.
        retry_after_s: when it may be better without anybody doing anything, or None.
    """

    def __init__(
        self, message: str, *, code: str, remedy: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy
        self.retry_after_s = retry_after_s


class ClientGone(BaseException):
    """The client closed its connection: stop at once, answer nobody.

    A BaseException like GeneratorExit, so that no handler for ordinary errors swallows it.
    """


class StreamBroken(ConnectionResetError):
    """Ends a response that failed after its headers were sent.

    gunicorn closes a connection quietly, without the final chunk, for an OSError with this errno;
    the client then sees a truncated body and cannot take the failure for a complete answer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ECONNRESET, reason)


def forget_frames(error: BaseException) -> None:
    """Let go of the frames that a failure, and whatever caused it, went through.

    For a failure that is understood, so that nobody will ask where it came from. The frames hold
    what was at hand, such as a request's body. If one of them knows the failure, as each that
    raises it by a name does, they hold each other until the garbage collector's next full round.
    """
    inner: BaseException | None = error
    while inner is not None:
        inner.__traceback__ = None
        inner = inner.__cause__ or inner.__context__


class ErrorDetails(TypedDict, total=False):
    """The arguments of `ApiError` besides its message, for subclasses that pass them on."""

    status: int | None
    type: str | None
    code: str | None
    param: str | None
    retry_after_s: float | None
    should_retry: bool | None
    details: Mapping[str, Any] | None


class ApiError(QwenProxyError):
    """A failure with the face that an OpenAI client expects.

    Args:
        message: what happened, what it means, what to do; shown to the client.
        status: HTTP status.
        type: OpenAI's error type, e.g. `invalid_request_error`.
        code: OpenAI's machine-readable code, or None.
        param: the request field at fault, or None.
        retry_after_s: seconds for `Retry-After`, or None.
        should_retry: value of `x-should-retry`, which the official SDKs obey; None leaves it out.
        details: Anthropic's `error.details`, or None.
    """

    status = 500
    type = "server_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = self.status if status is None else status
        self.type = self.type if type is None else type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.details = details

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InternalError(ApiError):
    """A fault of this program; the log has its traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="internal_error")


class BadRequest(ApiError):
    """The request can never succeed as it is."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    """The client's key is missing or wrong (not the account's: see `AccountUnavailable`)."""

    status = 401
    type = "invalid_request_error"


class Forbidden(ApiError):
    """The caller is known, and may not."""

    status = 403
    type = "permission_error"


class NotFound(ApiError):
    """No such route or model."""

    status = 404
    type = "invalid_request_error"


class Overloaded(ApiError):
    """We are full: try again soon."""

    status = 503
    type = "server_error"


class LimitReached(ApiError):
    """The client has taken what its key allows for now."""

    status = 429
    type = "rate_limit_error"


class AccountUnavailable(ApiError):
    """None of our accounts can answer now: the operator's problem, never the client's key."""

    status = 503
    type = "server_error"


class Scope(enum.Enum):
    """Who is affected by a failure, and is to be left alone."""

    #: Only this request: nobody is left alone.
    REQUEST = "request"
    ACCOUNT_MODEL = "account_model"
    ACCOUNT = "account"
    UPSTREAM = "upstream"


@dataclass(frozen=True)
class Failure:
    """What a failure of an upstream means for the calls to come.

    Attributes:
        cause: a stable word, of `upstream.causes.CAUSES`.
        scope: what is affected.
        retry: whether the same request may succeed later on the same account.
        elsewhere: whether another account may succeed now.
        wait_s: for how long the affected one is left alone; None leaves it to the policy.
        remedy: what the operator should do, as a sentence; empty when nothing is to be done.
        doubtful: the request itself may be at fault: it counts only together with failures of
            other requests.
        at_once: the next attempt needs no pause: the connection failed and not who is behind it, or
            the request is sent in another form.
        reset_s: until the end of the pause that the upstream itself named, which may be later than
            `wait_s`; None if it named none.
    """

    cause: str
    scope: Scope
    retry: bool
    elsewhere: bool
    wait_s: float | None = None
    remedy: str = ""
    doubtful: bool = False
    at_once: bool = False
    reset_s: float | None = None


class UpstreamError(ApiError):
    """The upstream answered with a failure, or with something that is no answer.

    Args:
        failure: what it means for later calls, where that is known.
        upstream_message: the upstream's own words, or what its answer was instead of words (`HTTP
            502 Bad Gateway with an empty body`); "" when no answer came.
    """

    status = 502
    type = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        failure: Failure | None = None,
        upstream_message: str = "",
        **details: Unpack[ErrorDetails],
    ) -> None:
        super().__init__(message, **details)
        self.failure = failure
        self.upstream_message = upstream_message
        #: The upstream's own id of the request, or "".
        self.upstream_request_id = ""


class AnswerTooLarge(UpstreamError):
    """An answer is larger than the proxy takes. Nobody is asked again, and it counts against no
    account: another attempt would be as large.

    Args:
        why: what is too large, and the limit: `has more than 128 choices`.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The upstream's answer {why}, so it was given up. Ask for less at a time.",
            code="upstream_too_large",
            should_retry=False,
            failure=Failure("answer_too_large", Scope.REQUEST, retry=False, elsewhere=False),
        )


class UpstreamTimeout(UpstreamError):
    """The upstream stayed silent for longer than a setting allows."""

    status = 504
