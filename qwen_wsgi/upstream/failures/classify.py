"""What an upstream's failure means: for the client, and for the calls to come.

Pure, from status, headers and body. `patterns.py` recognises the cause and `causes.py` says what
follows from it; here the shapes are read and the client's error is put together.

Shapes seen: OpenAI's `{"error": {"message", "type", "param", "code"}}`, DashScope's native
`{"code", "message", "request_id"}`, FastAPI's `{"detail"}`, a JSON body framed as an SSE `data:`
line (DashScope, for a refused stream), the text of an error as an answer (`error_finish`), HTML of
a gateway or firewall, and nothing at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from qwen_wsgi.errors import AccountUnavailable, ApiError, Scope, UpstreamError, UpstreamTimeout
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import sse
from qwen_wsgi.redaction import mask_all, mask_lookalikes
from qwen_wsgi.upstream.failures import retry_after
from qwen_wsgi.upstream.failures.causes import CAUSES, Cause
from qwen_wsgi.upstream.failures.patterns import ErrorReport, cause_of

#: OpenAI's types by the client's status, where neither cause nor upstream names one.
_TYPES: Final = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}

#: An id that fits into a header and a log line.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

#: A content type without its parameters (RFC 9110 §8.3.1).
_CONTENT_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")

#: Patterns are looked for in so much of a text.
_READ_CHARS: Final = 4096
#: So much of a text is searched for secrets; what is behind it is shown to nobody.
_EXAMINED_CHARS: Final = 16_384
#: So much of an answer that is the text of an error is sent to the client.
_SENT_CHARS: Final = 2048

#: A status in a text: DashScope's comment in native events, and its prefix "<429> …".
_STATUS: Final = re.compile(r"HTTP_STATUS/([45]\d\d)\b|^\s*<([45]\d\d)>")
#: "Throttling.RateQuota: …": the code before the text of an error.
_CODE: Final = re.compile(
    r"\s*(?:<\d{3}> ?)?([A-Za-z]{1,40}(?:[._][A-Za-z]{1,40}){1,5}|Throttling)\s*(?::|\{|$)"
)


def from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    account: str,
    family: Family = Family.OTHER,
    now: float | None = None,
    secrets: Sequence[str] = (),
) -> UpstreamError:
    """The client's error for an upstream answer that is none.

    Args:
        status: the upstream's HTTP status.
        headers: its headers, looked up without regard to case.
        body: what came of its body; may be cut.
        account: the account's name, for messages.
        family: what kind of host it is; the same words mean different things.
        now: seconds since 1970, for times of day; without it the answer's `Date` counts.
        secrets: what the account sent, which is masked wherever it is quoted.
    """
    now = retry_after.date_of(headers) if now is None else now
    wait_s = retry_after.retry_after_s(headers, now=now)
    error = _envelope(body)
    if error is None:
        made = _bare(
            status, headers, body, account=account, family=family, wait_s=wait_s, secrets=secrets
        )
    else:
        # An error inside a success has no status.
        error = _masked(error, secrets)
        report = _report(error, family, status if status >= 300 else None)
        made = _error(report, error, account=account, wait_s=wait_s, now=now)
    made.upstream_request_id = request_id(headers, body, secrets)
    return made


def from_frame(
    error: Any,
    *,
    account: str,
    family: Family = Family.OTHER,
    now: float | None = None,
    secrets: Sequence[str] = (),
) -> UpstreamError:
    """The client's error for an error frame that came before anything else, with HTTP 200.

    Args:
        error: the error object, or whatever stands in its place.
        account, family, now, secrets: as for `from_response`.
    """
    fields = _unwrapped(error) if isinstance(error, dict) else {"message": str(error)}
    fields = _masked(fields, secrets)
    return _error(_report(fields, family, None), fields, account=account, wait_s=None, now=now)


def from_error_finish(
    text: str,
    *,
    account: str,
    family: Family = Family.OTHER,
    now: float | None = None,
    secrets: Sequence[str] = (),
) -> UpstreamError:
    """The client's error for an answer that is the text of an error (finish `error_finish`).

    DashScope sends throttling so: as content, inside a 200.

    Args:
        text: the content.
        account, family, now, secrets: as for `from_response`.
    """
    # Masked before it is cut: half a secret is not recognized.
    text = mask_all(text[:_EXAMINED_CHARS], secrets)
    error = {"message": text.strip()[:_SENT_CHARS], **_embedded(text)}
    if found := _CODE.match(text):
        error.setdefault("code", found[1])
    if found := _STATUS.search(text):
        error.setdefault("status", found[1] or found[2])
    error.setdefault("code", "error_finish")
    error = _masked(error, secrets)
    return _error(_report(error, family, None), error, account=account, wait_s=None, now=now)


def no_answer(
    headers: Mapping[str, str],
    body: bytes,
    *,
    account: str,
    family: Family = Family.OTHER,
    now: float | None = None,
    secrets: Sequence[str] = (),
) -> UpstreamError:
    """The client's error for an HTTP 200 whose body is neither a stream nor a JSON object."""
    wait_s = retry_after.retry_after_s(headers, now=now)
    error = _bare(
        200, headers, body, account=account, family=family, wait_s=wait_s, secrets=secrets
    )
    error.upstream_request_id = request_id(headers, body, secrets)
    return error


def connection_error(cause: str, message: str) -> UpstreamError:
    """The client's error where no answer came, or only a part of one.

    Args:
        cause: a name of `CAUSES`: `unreachable`, `connect_timeout`, `timeout`, `closed`, `broken`,
            `empty`, `tls`, `proxy` or `bad_url`. The client's code is `upstream_` and this name.
    """
    row = CAUSES[cause]
    kind = UpstreamTimeout if row.status == HTTPStatus.GATEWAY_TIMEOUT else UpstreamError
    return kind(message, code=f"upstream_{cause}", failure=row.failure())


def cooling_down(cause: str, *, model: str, wait_s: float, why: str = "") -> ApiError:
    """The client's error while all accounts that serve a model are cooling down.

    Args:
        cause: why, as recorded in `Cooldowns`; another version may have written it.
        model: as the client named it.
        wait_s: when the first of them may be asked again.
        why: what is wrong, in more words than those of the cause.
    """
    row = CAUSES.get(cause, CAUSES["internal_error"])
    busy = row.scope is Scope.UPSTREAM or row.code is None
    remedy = f" For the operator of this proxy: {row.remedy}" if row.refuses_account else ""
    return AccountUnavailable(
        f"No account of this proxy can serve `{model}` now: {why or row.meaning}. The next attempt "
        f"is possible in {max(1.0, wait_s):.0f} s.{remedy}",
        status=503 if busy else row.status,
        type="server_error" if busy else row.type,
        code="upstream_unavailable" if busy else row.code,
        param=row.param,
        retry_after_s=wait_s,
        should_retry=row.should_retry,
    )


# --- reading -------------------------------------------------------------------------------------


def request_id(headers: Mapping[str, str], body: bytes = b"", secrets: Sequence[str] = ()) -> str:
    """The upstream's id of the request, of its headers or of DashScope's error; "" if none fits
    into a header, or it is a secret."""
    value = _json_of(body) if body and "x-request-id" not in headers else None
    named = value.get("request_id") if isinstance(value, dict) else None
    id = headers.get("x-request-id") or (named if isinstance(named, str) else "")
    if not REQUEST_ID.fullmatch(id):
        return ""
    # No secret is written in another way by JSON where such an id might hold it.
    for each in secrets:
        if each and each in id and mask_all(id, secrets) != id:
            return ""
    return id if mask_lookalikes(id) == id else ""


def _envelope(body: bytes) -> dict[str, Any] | None:
    """The error object of a body, or None."""
    error = _error_object(_json_of(body))
    return None if error is None else _unwrapped(error)


def _error_object(value: Any) -> dict[str, Any] | None:
    if isinstance(value, list) and value:
        value = value[0]  # Gemini's OpenAI-compatible endpoint
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": value.get("error_description") or error, "code": error}
    for name in ("message", "detail", "msg"):
        if isinstance(value.get(name), str):
            return {"message": value[name], "code": value.get("code"), "type": value.get("type")}
    if isinstance(value.get("detail"), list):
        # FastAPI's list of faults: [{"loc": [...], "msg": "..."}]
        faults = [fault for fault in value["detail"] if isinstance(fault, dict)]
        reasons = [
            f"{_place(fault.get('loc'))}{fault['msg']}" for fault in faults if "msg" in fault
        ]
        return {"message": "; ".join(reasons)} if reasons else None
    return None


def _unwrapped(error: dict[str, Any]) -> dict[str, Any]:
    """An error, with what its message holds if that is itself the body of an error (gateways)."""
    message = error.get("message")
    if not isinstance(message, str) or not message.lstrip().startswith(("{", "data:")):
        return error
    inner = _error_object(_json_of(message.encode(errors="replace"))) or {}
    return {**error, **{name: value for name, value in inner.items() if value is not None}}


def _embedded(text: str) -> dict[str, Any]:
    """The error object somewhere in a text, or nothing."""
    value = _json_of(text.encode(errors="replace"))
    start = text.find("{")
    if value is None and start >= 0:
        try:
            value = json.JSONDecoder().raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            return {}
    error = _error_object(value) or {}
    return {name: value for name, value in error.items() if value is not None}


def _json_of(body: bytes) -> Any:
    """The JSON value of a body, or of the first event of one that is framed as a stream."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        normalised = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        found = (sse.parse(event) for event in sse.events(normalised.strip()))
        return next((value for value in found if value is not None), None)


def _place(loc: object) -> str:
    return ".".join(map(str, loc)) + ": " if isinstance(loc, list) else ""


def _report(error: Mapping[str, Any], family: Family, status: int | None) -> ErrorReport:
    kind = error.get("type")
    message = " ".join(str(error.get("message") or "")[:_READ_CHARS].split())
    return ErrorReport(
        family=family,
        status=_status_in(error, message) if status is None else status,
        code="" if error.get("code") is None else str(error["code"]),
        type=kind if isinstance(kind, str) else "",
        message=message,
    )


def _status_in(error: Mapping[str, Any], message: str) -> int | None:
    """The status that an error inside a 200 names, or None."""
    named = [error.get(name) for name in ("code", "status", "status_code", "http_status")]
    found = _STATUS.search(message)
    for word in map(str, (*named, *(found.groups() if found else ()))):
        if len(word) == 3 and word.isascii() and word.isdigit() and 400 <= int(word) < 600:
            return int(word)
    return None


# --- rendering -----------------------------------------------------------------------------------


def _error(
    report: ErrorReport,
    error: Mapping[str, Any],
    *,
    account: str,
    wait_s: float | None,
    now: float | None,
) -> UpstreamError:
    text = str(error.get("message") or "")
    reset_s = retry_after.reset_s(report.message, now=now)
    if wait_s is None:
        wait_s = retry_after.named_s(report.message, now=now)
    param = error.get("param")
    return _client_error(
        cause_of(report),
        report,
        text=text or "The upstream gave an error without a message.",
        why=text.strip().rstrip(".") or "no reason given",
        code=None if error.get("code") is None else report.code,
        param=param if isinstance(param, str) else None,
        account=account,
        wait_s=wait_s,
        reset_s=reset_s,
    )


def _bare(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    account: str,
    family: Family,
    wait_s: float | None,
    secrets: Sequence[str],
) -> UpstreamError:
    """The client's error for a body that is no error object."""
    what = "an empty body"
    if body.strip():
        kind = mask_all(_content_type(headers), secrets)
        what = f"a body that is no JSON error ({kind}, {len(body)} bytes)"
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    report = ErrorReport(family, status, page=body[: 2 * _READ_CHARS].decode(errors="replace"))
    return _client_error(
        cause_of(report),
        report,
        text=f"The upstream of account '{account}' answered HTTP {phrase} with {what}.",
        why=f"HTTP {phrase} with {what}",
        code=f"upstream_http_{status}",
        param=None,
        account=account,
        wait_s=wait_s,
    )


def _content_type(headers: Mapping[str, str]) -> str:
    """The type that an answer says its body has, if it looks like one."""
    kind = headers.get("content-type", "").split(";")[0].strip()
    if not kind:
        return "no content type"
    return kind if _CONTENT_TYPE.fullmatch(kind) else "a content type that is none"


def _client_error(
    cause: Cause,
    report: ErrorReport,
    *,
    text: str,
    why: str,
    code: str | None,
    param: str | None,
    account: str,
    wait_s: float | None,
    reset_s: float | None = None,
) -> UpstreamError:
    status = cause.status_for(report.status)
    message = text
    if cause.template != "{message}":
        message = cause.template.format(message=_sentence(text), why=why, account=account)
    client_wait_s = cause.retry_after_s if wait_s is None else wait_s
    return UpstreamError(
        message,
        status=status,
        type=cause.type or _type(report.type, status),
        code=cause.code or code,
        param=param or cause.param,
        retry_after_s=None if cause.should_retry is False else client_wait_s,
        should_retry=cause.should_retry,
        failure=cause.failure(wait_s, reset_s),
        upstream_message=report.message or why,
    )


def _type(upstream: str, status: int) -> str:
    """The client's type of an error: that of a 400 is OpenAI's, which clients compare."""
    known = _TYPES.get(status, "server_error")
    return known if status == 400 else upstream or known


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", "。", "！")) else text + "."


def _masked(error: dict[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    """An error without secrets. Some gateways quote the key that they refuse: it is the operator's,
    not the client's."""
    shown = {
        name: str(value)
        if name in ("message", "code") and isinstance(value, dict | list)
        else value
        for name, value in error.items()
    }
    return {
        name: mask_all(value[:_EXAMINED_CHARS], secrets) if isinstance(value, str) else value
        for name, value in shown.items()
    }
